"""Tensors of published checkpoints, read slice by slice.

The family says which tensor a parameter comes from (`families.weights`). A host holds its own part
of the model and little more; no pickle is ever loaded.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpo_jax import families
from tpo_jax.checkpoints.safetensors_files import DTYPES, TensorFiles
from tpo_jax.errors import InputError
from tpo_jax.families.family import Family
from tpo_jax.families.weights import Leaf, Weights, from_torch
from tpo_jax.models.config import ModelConfig

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is still on disk; `np.asarray` reads it.

    `read` maps an index of slices, one per dimension, to that part of the parameter.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.read((slice(None),) * len(self.shape)).astype(dtype or self.dtype, copy=False)


def flatten(tree: Any) -> dict[str, Any]:
    """Return leaves by path, `decoder/layers/q/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@functools.cache
def weights(config: ModelConfig) -> Weights:
    """Return the tensors of a checkpoint of the model, and which parameter each one is."""
    shapes = {path: x.shape for path, x in flatten(families.abstract_params(config)).items()}
    return families.of(config).weights(config, shapes)


def check_tensors(shards: TensorFiles, config: ModelConfig) -> list[str]:
    """Return the names the model does not use; InputError unless every tensor is as expected."""
    table = weights(config)
    for name, shape in table.tensors.items():
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
    used = {name for leaf in table.leaves.values() for name in leaf.names}
    for copy, original in table.copies.items():
        if copy in shards and not np.array_equal(shards.read(copy), shards.read(original)):
            raise InputError(
                f"{shards.directory}: {shards.stored(copy)} differs from {shards.stored(original)} "
                "although config.json says tie_word_embeddings; say false there"
            )
    used |= table.copies.keys()
    unused = [name for names in shards.files.values() for name in names if name not in used]
    for name in unused:
        if name not in table.tensors and not table.ignorable.fullmatch(name):
            raise InputError(f"{shards.directory}: tensor {name} is not part of this model")
    return unused


def _reader(
    shards: TensorFiles, leaf: Leaf, shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[Index], np.ndarray]:
    """Return a function that maps an index into the parameter to that part of it."""

    def part(name: str, index: Index) -> np.ndarray:
        if leaf.kind == "transposed":
            return shards.read(name, index[::-1]).T
        if leaf.kind in ("patch", "frame_pair"):
            return from_torch(leaf, shards.read(name))[index]
        return shards.read(name, index)

    def read(index: Index) -> np.ndarray:
        if not leaf.stacked:
            return part(leaf.names[0], index).astype(dtype, copy=False)
        names = leaf.names[index[0]]
        rest = (len(range(*s.indices(n))) for s, n in zip(index[1:], shape[1:], strict=True))
        out = np.empty((len(names), *rest), dtype)
        for i, name in enumerate(names):
            out[i] = part(name, index[1:])
        return out

    return read


def open_shards(directory: Path, family: Family, tower: Path | None = None) -> TensorFiles:
    """Open the tensors of a checkpoint under the names of `families.weights`.

    Args:
        directory: the checkpoint.
        family: of the checkpoint.
        tower: folder of the vision tower, used where the checkpoint holds none.

    Raises:
        InputError: what is wrong with the files; no tower anywhere.
    """
    shards = TensorFiles(directory, family.canonical)
    if found := family.beside(directory, shards.shapes(), tower):
        shards.add(*found)
    return shards


def open_params(
    shards: TensorFiles, config: ModelConfig, dtype: Callable[[str], Any] = lambda path: None
) -> dict:
    """Return parameters as `families.abstract_params(config)`, every leaf a `Stored`.

    Args:
        shards: of the checkpoint.
        config: of the checkpoint.
        dtype: of a parameter, by its path; None: as stored (float32 where stacked layers differ).

    Raises:
        InputError: a missing, unused or wrongly shaped tensor; when read, one that is not finite.
    """
    check_tensors(shards, config)
    rows = weights(config).leaves

    def stored(keys: Any, abstract: Any) -> Stored:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        leaf = rows[path]
        dtypes = {DTYPES[shards.dtype(name)] for name in leaf.names}
        own = dtypes.pop() if len(dtypes) == 1 else np.float32
        to = np.dtype(dtype(path) or own)
        return Stored(abstract.shape, to, _reader(shards, leaf, abstract.shape, to))

    return jax.tree_util.tree_map_with_path(stored, families.abstract_params(config))


def place(stored: Stored, sharding: jax.sharding.Sharding) -> jax.Array:
    """Return the parameter laid out in a sharding; a host reads the parts of its own devices."""

    @functools.cache  # devices that hold the same part share one read
    def read(bounds: tuple[tuple[int, ...], ...]) -> np.ndarray:
        return stored.read(tuple(slice(*b) for b in bounds))

    def part(index: Index) -> np.ndarray:
        return read(tuple(s.indices(n)[:2] for s, n in zip(index, stored.shape, strict=True)))

    array = jax.make_array_from_callback(stored.shape, sharding, part)
    return array.block_until_ready()  # frees what was read before the next read
