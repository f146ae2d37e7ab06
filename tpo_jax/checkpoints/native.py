"""Parameters of a native model directory, `params/`: a tree of arrays, written by Orbax."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import Index, Stored, flatten, place
from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.quantized import SCALE

# Bytes of parameters read or written at a time, unless one alone is larger; bytes of a stored
# chunk, the least that is read of a large one.
_GROUP_BYTES, _CHUNK_BYTES = 2**26, 2**26


def _metadata(folder: Path, config: ModelConfig) -> dict:
    """Read shapes and dtypes of the parameters on disk, and check them against the config."""
    if not folder.is_dir():
        raise InputError(f"{folder.parent}: no params/; the directory is incomplete")
    try:
        stored = ocp.metadata(folder).metadata
    except ValueError as error:
        raise InputError(f"{folder}: not a complete Orbax checkpoint") from error
    check_tree(str(folder), stored, config)
    return stored


def read_params(
    folder: Path, config: ModelConfig, shardings: dict, dtype: Callable[[str], Any]
) -> Iterator[tuple[str, jax.Array]]:
    """Yield path and values of all parameters, laid out as `shardings` says; a host reads its own
    parts.

    They are read in groups: Orbax holds parameters and their encoded chunks while it reads.

    Args:
        dtype: of a parameter, by its path; None: as stored.

    Raises:
        InputError: not a complete checkpoint, not of this config, or a value that is not finite.
    """
    stored, where = flatten(_metadata(folder, config)), flatten(shardings)
    abstract = {
        path: jax.ShapeDtypeStruct(x.shape, dtype(path) or x.dtype, sharding=where[path])
        for path, x in stored.items()
    }
    for group in _groups(abstract.items()):
        read = flatten(_restore(folder, nested(group)))
        while read:  # only the caller refers to what was yielded
            path = next(iter(read))
            if not _finite(read[path]):
                raise InputError(f"{folder}: parameter {path} holds NaN or infinity")
            yield path, read.pop(path)


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _restore(folder: Path, abstract: dict) -> dict:
    """Read the parameters that `abstract` names."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return ocp.load(folder, abstract)
    except Exception as error:  # Orbax raises nothing narrower where an array is not whole
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"{folder}: {reason}") from error


def open_params(folder: Path, config: ModelConfig) -> dict:
    """Return parameters as `families.abstract_params(config)`, every leaf a `Stored`.

    Raises:
        InputError: as `read_params`; values are checked when they are read.
    """

    def stored(path: str, leaf: Any) -> Stored:
        def read(index: Index) -> np.ndarray:
            abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_one_device())
            part = _restore(folder, nested({path: abstract}))
            values = np.asarray(flatten(part)[path])
            if not all(np.isfinite(row).all() for row in values):
                raise InputError(f"{folder}: parameter {path} holds NaN or infinity")
            return values[index]

        return Stored(tuple(leaf.shape), np.dtype(leaf.dtype), read)

    leaves = flatten(_metadata(folder, config))
    return nested({path: stored(path, leaf) for path, leaf in leaves.items()})


def nested(leaves: dict) -> dict:
    """Return the tree of leaves by path, the inverse of `flatten`."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def check_tree(where: str, params: Any, config: ModelConfig) -> None:
    """Raise InputError unless names and shapes are those of the config."""
    found, wanted = (flatten(tree) for tree in (params, families.abstract_params(config)))
    if any(name.endswith(SCALE) for name in found):
        raise InputError(
            f"{where}: the decoder is quantized; save the checkpoint that it was loaded from, with "
            "the adapters merged, in its place"
        )
    for name in sorted(wanted.keys() ^ found.keys()):
        state = "is missing" if name in wanted else "is unknown to the config"
        raise InputError(f"{where}: parameter {name} {state}")
    for name, leaf in wanted.items():
        if found[name].shape != leaf.shape:
            raise InputError(
                f"{where}: parameter {name} has shape {found[name].shape}, "
                f"the config says {leaf.shape}"
            )


def write_params(folder: Path, leaves: Iterable[tuple[str, Any]]) -> None:
    """Write parameters by path; those still on disk are read `_GROUP_BYTES` at a time."""
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    with context:
        for group in _groups(leaves):
            _write_group(folder, group)
            del group
        ocp.partial.finalize(folder)


def _groups(leaves: Iterable[tuple[str, Any]]) -> Iterator[dict]:
    """Yield parameters by path in groups of `_GROUP_BYTES`, larger ones alone."""
    group: dict = {}
    size = 0
    for path, leaf in leaves:
        bytes_ = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        if group and size + bytes_ > _GROUP_BYTES:
            yield group
            group, size = {}, 0
        group[path] = leaf
        size += bytes_
    yield group


def _write_group(folder: Path, group: dict) -> None:
    # Orbax writes from the buffer of a JAX array, and from a copy of a NumPy array.
    read = {p: place(x, _one_device()) if isinstance(x, Stored) else x for p, x in group.items()}
    ocp.partial.save(folder, nested(read))


def _one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
