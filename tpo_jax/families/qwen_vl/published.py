"""`config.json` of a published Qwen3-VL or Qwen2.5-VL checkpoint to `QwenVLConfig` and back."""

from collections.abc import Collection, Mapping
from pathlib import Path

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl import processors
from tpo_jax.families.qwen_vl.config import QWEN2_5, QWEN3, QwenVLConfig
from tpo_jax.families.qwen_vl.sections import (
    read_decoder,
    read_tower,
    text_section,
    vision_section,
)
from tpo_jax.families.qwen_vl.weights import EMBEDDING
from tpo_jax.families.values import read_value, rotary_base
from tpo_jax.families.weights import Rename, Shape
from tpo_jax.io.files import read_json_object

ARCHITECTURES = {
    QWEN3: "Qwen3VLForConditionalGeneration",
    QWEN2_5: "Qwen2_5_VLForConditionalGeneration",
}
READS = {
    QWEN3: f"{ARCHITECTURES[QWEN3]} (Qwen3-VL 2B, 4B, 8B, 32B Instruct)",
    QWEN2_5: f"{ARCHITECTURES[QWEN2_5]} (Qwen2.5-VL 3B, 7B, 32B, 72B Instruct)",
}
# Related models that are not supported, and why. The family of Qwen3-VL refuses them.
_OTHERS = {
    "Qwen3VLMoeForConditionalGeneration": "its MLPs are mixtures of experts",
    "Qwen3_5ForConditionalGeneration": "most of its layers have linear attention",
    "Qwen3_5MoeForConditionalGeneration": "its MLPs are mixtures of experts",
    "Qwen2VLForConditionalGeneration": "its tower is another one",
}
_SETTINGS = ("max_length", "rope_theta", "frame_tokens", "time_instruction")
SETTINGS = {QWEN3: _SETTINGS, QWEN2_5: (*_SETTINGS, "text_after")}
# If `config.json` says nothing: base of the rotary wavelengths, and context length in tokens.
_THETA = {QWEN3: 5e5, QWEN2_5: 1e6}
_LENGTH = {QWEN3: 128000, QWEN2_5: 32768}


def recognises(kind: str, values: dict, names: Collection[str] = ()) -> bool:
    """Return whether a checkpoint is of this kind, or of a related one that gets its own message.

    Args:
        kind: `QWEN3` or `QWEN2_5`.
        values: contents of its `config.json`.
        names: names of its tensors; not used.
    """
    known = {ARCHITECTURES[kind], *(_OTHERS if kind == QWEN3 else ())}
    return values.get("model_type") == kind or bool(known & _architectures(values))


def _architectures(values: dict) -> set[str]:
    named = values.get("architectures")
    return {name for name in named if isinstance(name, str)} if isinstance(named, list) else set()


def layout_of(values: dict) -> str:
    """Return the name of the layout that `config.json`'s values are in."""
    return "transformers"


def read_config(
    kind: type[QwenVLConfig], directory: Path, shapes: Mapping[str, Shape], settings: dict
) -> QwenVLConfig:
    """Return the config of a published checkpoint.

    Args:
        kind: the config's class.
        directory: holds `config.json` and, as published, `preprocessor_config.json` and
            `video_preprocessor_config.json` with the pixel budgets.
        shapes: of the stored tensors by name in `weights`.
        settings: of `SETTINGS`, take precedence over the files; `tower`, a folder, is refused.

    Raises:
        InputError: a key is missing or has a value that is not supported.
    """
    where = f"{directory}/config.json"
    values = read_json_object(directory / "config.json")
    for name in sorted(_architectures(values) & set(_OTHERS)):
        supported = " and ".join(READS.values())
        raise InputError(f"{where}: {name} is not supported, {_OTHERS[name]}; {supported} are")
    if tower := settings.get("tower"):
        raise InputError(f"--tower={tower}: {directory} has a tower of its own")
    if EMBEDDING not in shapes:
        raise InputError(f"{directory}: tensor {EMBEDDING} is missing")
    text, vision = _text(where, kind.KIND, values), _section(where, values, "vision_config")
    settings = dict(settings)
    theta = settings.pop("rope_theta", None) or rotary_base(where, text, _THETA[kind.KIND])
    try:
        parts = (
            read_tower(where, kind.KIND, vision),
            read_decoder(where, kind.KIND, values, text, shapes, theta),
        )
        width = parts[1].width
        if (outputs := vision.get("out_hidden_size", width)) != width:
            raise InputError(f"{where}: out_hidden_size={outputs!r} must be {width}")
        length = read_value(where, text, "max_position_embeddings", int, _LENGTH[kind.KIND])
        read = processors.read_qwen3 if kind.KIND == QWEN3 else processors.read_qwen2_5
        given = {"max_length": length, **read(directory, parts[0], settings.get("frame_tokens"))}
        return kind(*parts, **{**given, **settings})
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _text(where: str, kind: str, values: dict) -> dict:
    """Return the text section, which in published files of Qwen2.5-VL is the file itself."""
    if kind == QWEN2_5 and "text_config" not in values:
        return values
    return _section(where, values, "text_config")


def _section(where: str, values: dict, name: str) -> dict:
    part = values.get(name)
    if not isinstance(part, dict):
        raise InputError(f"{where}: {name} must be an object")
    return part


def beside(
    directory: Path, shapes: Mapping[str, Shape], tower: Path | None
) -> tuple[Path, Rename] | None:
    """Return None: a checkpoint lacks no tensors."""
    return None


def update_config(values: dict, config: QwenVLConfig) -> dict:
    """Return `config.json`'s values, changed where the config's positions differ."""
    kind = config.KIND
    text = given = _text("config.json", kind, values)
    if text.get("max_position_embeddings", _LENGTH[kind]) != config.max_length:
        text = text | {"max_position_embeddings": config.max_length}
    theta = config.decoder.rope_theta
    if rotary_base("config.json", text, _THETA[kind]) != theta:
        nested = text.get("rope_parameters")
        if "rope_theta" not in text and isinstance(nested, dict):
            text = text | {"rope_parameters": nested | {"rope_theta": theta}}
        else:
            text = text | {"rope_theta": theta}
    if text == given:
        return values
    return text if given is values else values | {"text_config": text}


def new_config(config: QwenVLConfig, dtype: str) -> dict[str, dict]:
    """Return the JSON files of a model that did not come from a checkpoint."""
    values = {
        "architectures": [ARCHITECTURES[config.KIND]],
        "model_type": config.KIND,
        "dtype": dtype,
        "text_config": text_section(config),
        "vision_config": vision_section(config),
        "tie_word_embeddings": config.decoder.tied,
        **_placeholders(config.decoder.vocab_size),
    }
    return {"config.json": values, **processors.new_files(config)}


# Ids of the published tokenizer.
_PUBLISHED_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


def _placeholders(rows: int) -> dict[str, int]:
    """Return the ids of vision tokens; the last ids of a vocabulary too small for these."""
    if rows > max(_PUBLISHED_IDS.values()):
        return _PUBLISHED_IDS
    return {name: rows - 4 + i for i, name in enumerate(_PUBLISHED_IDS)}


def config_files(directory: Path) -> list[Path]:
    """Return no files: those of the processors are given back with the tokenizer's."""
    return []
