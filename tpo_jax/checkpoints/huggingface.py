"""Tensors of Hugging Face checkpoints in LongVA and LLaVA-Video layout, read.

One table pairs PyTorch names with parameter paths. Reading goes slice by slice, so a host holds its
own part of the model and little more; no pickle is ever loaded.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tpo_jax import families
from tpo_jax.checkpoints.safetensors_files import DTYPES, Shards
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen import published as hf_config
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.models.config import ModelConfig

_EMBEDDING = "model.embed_tokens.weight"
_VISION = "model.vision_tower.vision_tower.vision_model."


class Leaf(NamedTuple):
    """Where a parameter lives: one name, or one for each of the stacked layers."""

    names: tuple[str, ...]
    stacked: bool
    kind: str  # same; transposed: [out, in] to [in, out]; patch: [D, 3, p, p] to [p * p * 3, D]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is still on disk; `np.asarray` reads it.

    `read` takes an index of slices, one per dimension, to that part of the parameter.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read((slice(None),) * len(self.shape)).astype(dtype or self.dtype, copy=False)


def _linear(path: str, name: str) -> dict:
    return {
        f"{path}/kernel": (f"{name}.weight", "transposed"),
        f"{path}/bias": (f"{name}.bias", "same"),
    }


def _norm(path: str, name: str) -> dict:
    return {f"{path}/scale": (f"{name}.weight", "same"), f"{path}/bias": (f"{name}.bias", "same")}


_DECODER_LAYER = {
    f"{ours}/{leaf}": rule
    for ours, theirs in {
        **{name: f"self_attn.{name}_proj" for name in "qkvo"},
        **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        "input_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }.items()
    for leaf, rule in {
        "kernel": (f"{theirs}.weight", "transposed"),
        "bias": (f"{theirs}.bias", "same"),
        "scale": (f"{theirs}.weight", "same"),
    }.items()
}
_TOWER_LAYER = {
    **_norm("norm1", "layer_norm1"),
    **_norm("norm2", "layer_norm2"),
    **_linear("q", "self_attn.q_proj"),
    **_linear("k", "self_attn.k_proj"),
    **_linear("v", "self_attn.v_proj"),
    **_linear("out", "self_attn.out_proj"),
    **_linear("fc1", "mlp.fc1"),
    **_linear("fc2", "mlp.fc2"),
}
_SINGLE = {
    "decoder/embed/embedding": (_EMBEDDING, "same"),
    "decoder/norm/scale": ("model.norm.weight", "same"),
    "decoder/head/kernel": ("lm_head.weight", "transposed"),
    "newline": ("model.image_newline", "same"),
    **_linear("projector/fc1", "model.mm_projector.0"),
    **_linear("projector/fc2", "model.mm_projector.2"),
    "tower/class_token": (f"{_VISION}embeddings.class_embedding", "same"),
    "tower/position": (f"{_VISION}embeddings.position_embedding.weight", "same"),
    "tower/patch/kernel": (f"{_VISION}embeddings.patch_embedding.weight", "patch"),
    "tower/patch/bias": (f"{_VISION}embeddings.patch_embedding.bias", "same"),
    **_norm("tower/pre_norm", f"{_VISION}pre_layrnorm"),  # the spelling of `transformers`
}
_STACKS = {
    "decoder/layers/": ("model.layers.", _DECODER_LAYER),
    "tower/layers/": (f"{_VISION}encoder.layers.", _TOWER_LAYER),
}


def flatten(tree) -> dict:
    """Leaves by path, `decoder/layers/q/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def table(config: ModelConfig) -> dict[str, Leaf]:
    """PyTorch names of every parameter of the model, by path."""
    rows = {}
    for path, leaf in flatten(families.abstract_params(config)).items():
        for prefix, (name, layer) in _STACKS.items():
            if path.startswith(prefix):
                rest, kind = layer[path.removeprefix(prefix)]
                names = tuple(f"{name}{i}.{rest}" for i in range(leaf.shape[0]))
                rows[path] = Leaf(names, True, kind)
        if path in _SINGLE:
            rows[path] = Leaf(_SINGLE[path][:1], False, _SINGLE[path][1])
    return rows


def _torch_shape(shape: tuple[int, ...], kind: str, tower: TowerConfig) -> tuple[int, ...]:
    if kind == "patch":
        return (tower.width, 3, tower.patch_size, tower.patch_size)
    return shape[::-1] if kind == "transposed" else shape


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor a checkpoint has to hold, by PyTorch name.

    The tower's post-norm and CLIP's last block are among them: no output depends on them, but the
    original modules own them.
    """
    tower, abstract = config.tower, flatten(families.abstract_params(config))
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in table(config).items():
        shape = abstract[path].shape[leaf.stacked :]
        shapes |= dict.fromkeys(leaf.names, _torch_shape(shape, leaf.kind, tower))
        if tower.kind == "clip" and path.startswith("tower/layers/"):
            last = leaf.names[0].replace("layers.0.", f"layers.{tower.layers}.")
            shapes[last] = _torch_shape(shape, leaf.kind, tower)
    for name in ("weight", "bias"):
        shapes[f"{_VISION}post_layernorm.{name}"] = (tower.width,)
    return shapes


def _may_be_there(config: ModelConfig) -> re.Pattern:
    """Tensors of the originals that no output depends on and that may be missing."""
    vision = re.escape(_VISION)
    names = [rf"{vision}embeddings\.position_ids", r"model\.vision_resampler\..*"]
    names.append(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
    if config.tower.kind == "siglip":
        names += [rf"{vision}encoder\.layers\.{config.tower.layers}\..*", rf"{vision}head\..*"]
    if not config.has_newline:
        names.append(r"model\.image_newline")
    return re.compile("|".join(names))


def read_config(directory: Path, settings: dict) -> ModelConfig:
    """The config of a checkpoint; see `huggingface_config.to_config`."""
    shards = Shards(directory)
    if _EMBEDDING not in shards:
        raise InputError(f"{directory}: tensor {_EMBEDDING} is missing")
    return hf_config.to_config(directory, shards.shape(_EMBEDDING)[0], settings)


def check_tensors(shards: Shards, config: ModelConfig) -> list[str]:
    """Names the model does not use; InputError unless every tensor is as expected."""
    expected, ignorable = expected_shapes(config), _may_be_there(config)
    for name, shape in expected.items():
        if name not in shards:
            raise InputError(f"{shards.directory}: tensor {name} is missing")
        if shards.shape(name) != shape:
            raise InputError(
                f"{shards.directory}: tensor {name} has shape {list(shards.shape(name))}, "
                f"the config asks for {list(shape)}"
            )
        if shards.dtype(name) not in DTYPES:
            raise InputError(
                f"{shards.directory}: tensor {name} is {shards.dtype(name)}, not {'|'.join(DTYPES)}"
            )
    used = {name for leaf in table(config).values() for name in leaf.names}
    unused = [name for names in shards.files.values() for name in names if name not in used]
    for name in unused:
        if name not in expected and not ignorable.fullmatch(name):
            raise InputError(f"{shards.directory}: tensor {name} is not part of this model")
    return unused


def _reader(shards: Shards, leaf: Leaf, shape: tuple[int, ...], dtype) -> Callable:
    """A function from an index into the parameter to that part of it."""

    def part(name, index):
        if leaf.kind == "transposed":
            return shards.read(name, index[::-1]).T
        if leaf.kind == "patch":
            return _to_patch_kernel(shards.read(name))[index]
        return shards.read(name, index)

    def read(index):
        if not leaf.stacked:
            return part(leaf.names[0], index).astype(dtype)
        names = leaf.names[index[0]]
        rest = (len(range(*s.indices(n))) for s, n in zip(index[1:], shape[1:], strict=True))
        out = np.empty((len(names), *rest), dtype)
        for i, name in enumerate(names):
            out[i] = part(name, index[1:])
        return out

    return read


def _to_patch_kernel(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def open_params(directory: Path, config: ModelConfig, dtype=None) -> dict:
    """Parameters as `families.abstract_params(config)`, every leaf a `Stored`.

    Args:
        directory: the checkpoint.
        config: from `read_config`.
        dtype: of the parameters; None: as stored (float32 where stacked layers differ).

    Raises:
        InputError: a missing, unused or wrongly shaped tensor; when read, one that is not finite.
    """
    shards = Shards(directory)
    check_tensors(shards, config)
    rows = table(config)

    def stored(path, abstract):
        leaf = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
        dtypes = {DTYPES[shards.dtype(name)] for name in leaf.names}
        own = dtypes.pop() if len(dtypes) == 1 else np.float32
        to = np.dtype(dtype or own)
        return Stored(abstract.shape, to, _reader(shards, leaf, abstract.shape, to))

    return jax.tree_util.tree_map_with_path(stored, families.abstract_params(config))


def place(stored: Stored, sharding: jax.sharding.Sharding) -> jax.Array:
    """The parameter in a sharding; a host reads the parts of its own devices."""

    @functools.cache  # devices that hold the same part share one read
    def read(bounds):
        return stored.read(tuple(slice(*b) for b in bounds))

    def part(index):
        return read(tuple(s.indices(n)[:2] for s, n in zip(index, stored.shape, strict=True)))

    return jax.make_array_from_callback(stored.shape, sharding, part)
