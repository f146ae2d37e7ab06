"""PEFT's LoRA directories as input: adapters merged into a model, and what trained beside them."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tpo_jax import families
from tpo_jax.checkpoints import hub
from tpo_jax.checkpoints.huggingface import weights
from tpo_jax.checkpoints.safetensors_files import TensorFiles
from tpo_jax.errors import InputError
from tpo_jax.families.weights import Leaf, from_torch
from tpo_jax.io.files import read_json_object
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.lora import Lora, merge

# Allowed values of settings; with others a directory holds more than plain products `A B`.
_UNSUPPORTED = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}
_INITIAL = (True, False, None, "gaussian", "orthogonal")  # those that leave the base unchanged
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


class _Config(NamedTuple):
    """What `adapter_config.json` says."""

    where: str
    values: dict
    lora: Lora

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of the product of a module's `A` and `B`."""
        alpha = self._of("alpha_pattern", module, self.lora.alpha)
        return alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def _of(self, patterns: str, module: str, default: float) -> float:
        """Return the value of the first pattern that ends a module's name, as PEFT matches them."""
        for pattern, value in (self.values.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        return default


class Adapters(NamedTuple):
    """A PEFT directory's contents, by paths of the parameters that they change."""

    factors: dict[str, dict[str, np.ndarray]]  # `lora_a` and `lora_b`, of kernels
    whole: dict[str, np.ndarray]  # values in place of the model's
    lora: Lora

    def onto(self, path: str, x: jax.Array) -> jax.Array:
        """Return a parameter with the directory's change to it applied, in its own dtype.

        Adapters are added layer by layer, into the buffer of `x`, which is donated.
        """
        if path in self.whole:
            return jax.device_put(self.whole[path].astype(x.dtype), x.sharding)
        if path in self.factors:
            return merge({"kernel": x, **self.factors[path]}, self.lora)["kernel"]
        return x


def read_adapters(directory: str | Path, config: ModelConfig) -> Adapters:
    """Read a PEFT directory: adapters, and the tensors that it holds whole (`modules_to_save`, and
    `non_lora_trainables.safetensors`).

    Args:
        directory: in PEFT's layout, or its name on the Hugging Face Hub.
        config: of the model.

    Raises:
        InputError: the directory is not PEFT's, is of another model, or is not supported.
    """
    directory = hub.folder(directory)
    read = _read_config(directory)
    shards = _open(directory, config)
    places = {
        name: (path, leaf, i)
        for path, leaf in weights(config).leaves.items()
        for i, name in enumerate(leaf.names)
    }
    factors: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    whole: dict[str, dict[int, np.ndarray]] = {}
    for name in shards.shapes():
        if found := _FACTOR.fullmatch(name):
            if found[2] == "B":
                continue
            module = found[1]
            path, leaf, i = _place(directory, places, f"{module}.weight", config)
            if leaf is not None:
                factors.setdefault(path, {})[i] = _factors(shards, module, leaf, read)
        else:
            path, leaf, i = _place(directory, places, name, config)
            if leaf is not None:
                if shards.shape(name) != leaf.shape:
                    raise _not_of_this(directory, name, shards.shape(name), leaf.shape)
                whole.setdefault(path, {})[i] = from_torch(leaf, shards.read(name))
    if not factors and not whole:
        raise InputError(f"{directory}: no adapters")
    return _stacked(config, factors, whole, read.lora)


def _read_config(directory: Path) -> _Config:
    where = f"{directory}/adapter_config.json"
    values = read_json_object(directory / "adapter_config.json")
    if values.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type is {values.get('peft_type')!r}, must be 'LORA'")
    for key, allowed in _UNSUPPORTED.items():
        if values.get(key) not in allowed:
            raise InputError(f"{where}: {key}={values[key]!r} is not supported")
    if values.get("init_lora_weights", True) not in _INITIAL:
        raise InputError(
            f"{where}: init_lora_weights={values['init_lora_weights']!r} changes the base; convert "
            "the adapters to plain LoRA first (PEFT's path_initial_model_for_weight_conversion)"
        )
    rank, alpha = values.get("r", 0), values.get("lora_alpha", 0)
    patterns = [values.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not alpha > 0:
        raise InputError(f"{where}: r={rank!r} and lora_alpha={alpha!r} must be positive numbers")
    if not all(
        isinstance(p, dict) and set(map(type, p.values())) <= {int, float} for p in patterns
    ):
        raise InputError(f"{where}: rank_pattern and alpha_pattern must hold numbers")
    return _Config(where, values, Lora(rank, float(alpha)))


def _open(directory: Path, config: ModelConfig) -> TensorFiles:
    family = families.of(config)
    pickled, stored = "non_lora_trainables.bin", "non_lora_trainables.safetensors"
    if (directory / pickled).is_file() and not (directory / stored).is_file():
        raise InputError(
            f"{directory}/{pickled} is pickled and never loaded; store it as {stored} first"
        )
    return TensorFiles(directory, lambda name: family.canonical(name.removeprefix(_PREFIX)))


def _place(directory: Path, places: dict, name: str, config: ModelConfig) -> tuple:
    """Return parameter, leaf and layer of a tensor; the leaf is None if no output depends on it."""
    if name in places:
        return places[name]
    table = weights(config)
    if name in table.tensors or name in table.copies or table.ignorable.fullmatch(name):
        return name, None, 0
    raise InputError(f"{directory}: {name} is not part of this model")


def _not_of_this(directory: Path, name: str, found: Any, wanted: Any) -> InputError:
    return InputError(
        f"{directory}: {name} has shape {list(found)}, the model asks for {list(wanted)}; the "
        "adapters belong to another model"
    )


def _factors(
    shards: TensorFiles, module: str, leaf: Leaf, read: _Config
) -> tuple[np.ndarray, np.ndarray]:
    """Return `A` `[in, r]` and `B` `[r, out]` of a module, float32, `B` in units of the common
    scale.
    """
    names = [f"{module}.lora_{factor}.weight" for factor in "AB"]
    if names[1] not in shards:
        raise InputError(f"{shards.directory}: {names[1]} is missing")
    a, b = (shards.read(name).astype(np.float32).T for name in names)
    if a.ndim != 2 or b.ndim != 2 or (b.shape[1], a.shape[0]) != leaf.shape or len(b) != a.shape[1]:
        raise _not_of_this(shards.directory, names[0], a.T.shape, (read.lora.rank, leaf.shape[-1]))
    stored = shards.stored(names[0]).removeprefix(_PREFIX).removesuffix(".lora_A.weight")
    ratio = read.scale(stored, a.shape[1]) / read.lora.scale
    return a, b if ratio == 1 else b * np.float32(ratio)


def _stacked(config: ModelConfig, factors: dict, whole: dict, lora: Lora) -> Adapters:
    rows = weights(config).leaves
    found = Adapters({}, {}, lora)
    for path, parts in whole.items():
        leaf = rows[path]
        if len(parts) < len(leaf.names):
            raise InputError(f"{leaf.names[0]}: the adapters hold {len(parts)} of its layers only")
        values = np.stack([parts[i] for i in range(len(parts))]) if leaf.stacked else parts[0]
        found.whole[path] = values
    for path, parts in factors.items():
        rank = max(a.shape[1] for a, _ in parts.values())
        for name, k in (("lora_a", 0), ("lora_b", 1)):
            padded = {i: _padded(part[k], rank, axis=1 - k) for i, part in parts.items()}
            nothing = np.zeros_like(next(iter(padded.values())))
            layers = [padded.get(i, nothing) for i in range(len(rows[path].names))]
            values = np.stack(layers) if rows[path].stacked else layers[0]
            found.factors.setdefault(path, {})[name] = values
    return found


def _padded(factor: np.ndarray, rank: int, axis: int) -> np.ndarray:
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, rank - factor.shape[axis])
    return np.pad(factor, widths)
