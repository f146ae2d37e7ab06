"""Values of a published `config.json`, checked when they are read."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tpo_jax.errors import InputError, note
from tpo_jax.families.weights import EMBEDDING, HEAD, Shape
from tpo_jax.models.config import ModelConfig


def read_value(where: str, values: dict, key: str, kind: type, default: Any = None) -> Any:
    """Return a value of the given type; numbers must be positive.

    Raises:
        InputError: the value is of another type or range, or missing without a default.
    """
    value: Any = default if values.get(key) is None else values[key]
    if value is None:
        raise InputError(f"{where}: key {key!r} is missing")
    if kind is float and type(value) is int:
        value = float(value)
    right = type(value) is kind
    if not right or (kind is not str and not 0 < value < math.inf):
        expected = {str: "a text", int: "a positive integer", float: "a positive number"}[kind]
        raise InputError(f"{where}: {key}={value!r} must be {expected}")
    return value


def check_fixed(where: str, values: dict, fixed: dict) -> None:
    """Raise InputError if a value differs from the only supported one; absent values pass."""
    for key, wanted in fixed.items():
        if values.get(key, wanted) not in (wanted, None):
            raise InputError(
                f"{where}: {key}={values[key]!r} is not supported; it must be {wanted!r}"
            )


def rotary_base(where: str, values: dict, default: float) -> float:
    """Return the base of the rotary wavelengths; newer files nest it in `rope_parameters`."""
    nested = values.get("rope_parameters")
    rope = values if values.get("rope_theta") or not isinstance(nested, dict) else nested
    return read_value(where, rope, "rope_theta", float, default)


def has_rotary_base(values: dict) -> bool:
    """Return whether a config says what the base of the rotary wavelengths is."""
    nested = values.get("rope_parameters")
    return bool(values.get("rope_theta") or (isinstance(nested, dict) and nested.get("rope_theta")))


def scaled_positions(values: dict) -> str:
    """Return `key=value` if a config asks for scaled rotary positions, else ""."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = values.get(key) or {}
        if not isinstance(scaling, dict):
            return f"{key}={scaling!r}"
        kind = scaling.get("rope_type", scaling.get("type")) or "default"
        if kind != "default" and not (kind == "linear" and scaling.get("factor") == 1):
            return f"{key}={scaling!r}"
    return ""


def settings_of(config: ModelConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return a config's values of settings of published checkpoints, `Family.settings`."""
    return {
        name: getattr(config.decoder if name == "rope_theta" else config, name) for name in names
    }


def check_settings(reads: str, names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raise InputError if one of the settings is not among the family's.

    Args:
        reads: what messages call the family's checkpoints, `Family.reads`.
        names: `Family.settings`.
        settings: values by name, as flags of `convert` or keywords of `tpo_jax.load`.
    """
    for name in sorted(settings.keys() - set(names)):
        raise InputError(
            f"--{name}={settings[name]} is no setting of {reads}, which have {', '.join(names)}"
        )


def read_rows(
    where: str, values: dict, shapes: Mapping[str, Shape], embedding: str = EMBEDDING
) -> int:
    """Return the number of rows of the embedding; note it if `vocab_size` differs."""
    rows, said = shapes[embedding][0], values.get("vocab_size")
    if said not in (None, rows):
        note(f"{where}: vocab_size={said!r}, but the embedding has {rows} rows, which are used")
    return rows


def read_tied(where: str, *sections: dict, stored: Any, embedding: str = EMBEDDING) -> bool:
    """Return whether the head is the transposed embedding.

    Args:
        where: the file, for messages.
        *sections: parts of `config.json` that may say so; one that does suffices.
        stored: names of the tensors; decides where no section says anything.
        embedding: the embedding's name there.

    Raises:
        InputError: `tie_word_embeddings` is neither true nor false.
    """
    said = [v for part in sections if (v := part.get("tie_word_embeddings")) is not None]
    if wrong := [v for v in said if type(v) is not bool]:
        raise InputError(f"{where}: tie_word_embeddings={wrong[0]!r} must be true or false")
    if said:
        return any(said)
    if HEAD not in stored and embedding in stored:
        note(f"{where}: no tie_word_embeddings and no {HEAD}; the head is taken for the embedding")
        return True
    return False
