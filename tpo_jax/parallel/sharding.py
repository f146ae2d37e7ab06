"""One table of how parameters, batches and activations lie over the mesh.

Weights are split over `fsdp` and `context` together, so that the chips of a long row carry their
share of the state, and inside a layer over `tensor`. Rows of a batch are split over `data` and
`fsdp`.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import P

from tpo_jax.errors import InputError

Tree = TypeVar("Tree")

WEIGHTS = ("fsdp", "context")
ROWS = ("data", "fsdp")
WITHIN_ROW = ("tensor", "context")  # the chips that share a row
ALL = ROWS + WITHIN_ROW
VOCABULARY = ("fsdp", "context", "tensor")

# First match wins. Paths are those of the parameter tree, `decoder/layers/q/kernel`; the leading
# None of stacked layers is the axis `L`. A second layout is for sizes that the first does not
# divide: the 151,646 rows of a vocabulary cut to its tokenizer.
PARAMETERS: tuple[tuple[str | P, ...], ...] = (
    (r"decoder/embed/embedding", P("tensor", WEIGHTS), P(None, WEIGHTS)),
    (r"decoder/head/kernel", P(None, VOCABULARY), P(WEIGHTS, None)),
    (r"decoder/layers/(q|k|v|gate|up)/kernel", P(None, WEIGHTS, "tensor")),
    (r"decoder/layers/(o|down)/kernel", P(None, "tensor", WEIGHTS)),
    (r"decoder/layers/(q|k|v|gate|up)/kernel_scale", P(None, None, "tensor")),
    (r"decoder/layers/(o|down)/kernel_scale", P(None, None, WEIGHTS)),
    (r"decoder/layers/(q|k|v|gate|up)/lora_a", P(None, WEIGHTS, None)),
    (r"decoder/layers/(q|k|v|gate|up)/lora_b", P(None, None, "tensor")),
    (r"decoder/layers/(o|down)/lora_a", P(None, "tensor", None)),
    (r"decoder/layers/(o|down)/lora_b", P(None, None, WEIGHTS)),
    (r"decoder/layers/(q|k|v)/bias", P(None, "tensor")),
    (r"projector/fc1/kernel", P(None, WEIGHTS)),
    (r"projector/fc2/kernel", P(WEIGHTS, None)),
    (r"tower/patch/kernel", P(None, WEIGHTS)),
    (r"tower/layers/(q|k|v|fc1)/kernel", P(None, WEIGHTS, None)),
    (r"tower/layers/(out|fc2)/kernel", P(None, None, WEIGHTS)),
    (r".*(bias|scale|position|class_token|newline)", P()),
    (r".*/kernel", P(None, WEIGHTS), P()),  # of a family's own encoder
)


def axis_size(name: str) -> int:
    """Return the size of an axis of the current mesh (`jax.set_mesh`), 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def platform(mesh: jax.sharding.Mesh | None = None) -> str:
    """Return the platform that programs are compiled for, `cpu`, `gpu` or `tpu`: that of a mesh, by
    default the current one, or JAX's default without a mesh.

    The devices of a mesh need not exist, as in `planning`.
    """
    device = (mesh.abstract_mesh if mesh else jax.sharding.get_abstract_mesh()).abstract_device
    return device.platform if device else jax.default_backend()


def constrain(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """Lay `x` out as `P(*spec)` over the current mesh; return `x` itself without a mesh.

    Raises:
        InputError: a dimension does not divide its mesh axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    _check(mesh, "an activation", x.shape, P(*spec))
    return jax.lax.with_sharding_constraint(x, P(*spec))


def vocabulary_axes(size: int) -> tuple[str, ...] | None:
    """Return the axes of the current mesh that split logits; None where they do not divide them."""
    return None if size % math.prod(map(axis_size, VOCABULARY)) else VOCABULARY


def _check(mesh: jax.sharding.Mesh, path: str, shape: tuple[int, ...], spec: P) -> None:
    for size, names in zip(shape, spec, strict=False):
        axes = (names,) if isinstance(names, str) else names or ()
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            legal = [n for n in range(1, parts + 1) if size % n == 0 and parts % n == 0]
            raise InputError(
                f"{path}: size {size} cannot be split over {'*'.join(axes)}={parts}; "
                f"the largest divisor is {legal[-1]}"
            )


def _spec(mesh: jax.sharding.Mesh, name: str, shape: tuple[int, ...]) -> P:
    rows = (row for row in PARAMETERS if re.search(f"(^|/){row[0]}$", name))
    specs = next(rows, (None,))[1:]
    if not specs:
        raise KeyError(f"no sharding rule for parameter {name!r}")
    for spec in specs[:-1]:
        with contextlib.suppress(InputError):
            _check(mesh, name, shape, spec)
            return spec
    _check(mesh, name, shape, specs[-1])
    return specs[-1]


def constrain_layer(weights: Tree, path: str) -> Tree:
    """Lay out one layer's slice of the stacked weights under `path` as the stack is stored.

    In the backward pass each chip then gets its part of a gradient's sum over the rows
    (reduce-scatter) instead of all of it (all-reduce).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weights

    def leaf(keys: tuple, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")
        return constrain(x, *_spec(mesh, f"{path}/{name}", (1, *x.shape))[1:])

    return jax.tree_util.tree_map_with_path(leaf, weights)


def parameter_shardings(mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Return the NamedSharding of each leaf of a tree whose paths end in parameter paths.

    The train state is such a tree: moments lie where their parameters lie.

    Raises:
        InputError: a dimension does not divide its mesh axes.
        KeyError: a parameter that `PARAMETERS` does not name.
    """

    def sharding(path: tuple, leaf: Any) -> jax.NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:
            return jax.NamedSharding(mesh, P())
        return jax.NamedSharding(mesh, _spec(mesh, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Return the sharding of every array of a batch: rows over `data` and `fsdp`."""
    return jax.NamedSharding(mesh, P(ROWS))


def placed(
    x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, dtype: jax.typing.DTypeLike = None
) -> jax.ShapeDtypeStruct:
    """Return the abstract array with a sharding and, if given, another dtype."""
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)


def check_rows(
    rows: int, mesh: jax.sharding.Mesh, micro_batches: int = 1, together: int = 1
) -> None:
    """Check that all devices get the same number of rows in every micro-batch.

    Args:
        rows: number of rows of a batch.
        mesh: devices.
        micro_batches: parts of a batch.
        together: neighbouring rows that must be in the same micro-batch.

    Raises:
        InputError: they do not; the message names the nearest legal numbers of rows.
    """
    parts = math.prod(mesh.shape[axis] for axis in ROWS) * micro_batches
    by = "data*fsdp"
    if micro_batches > 1:
        by += "*micro_batches"
        if together > 1:
            parts, by = together * parts, f"{together}*{by}"
    if rows % parts:
        more = f"; pairs of two videos add {together} * data.video_pairs" if together > 1 else ""
        near = max(rows // parts, 1) * parts
        raise InputError(
            f"{rows} rows per batch do not divide over {by}={parts}; "
            f"use {near} or {near + parts} rows (train.batch_size / data.pairs_per_row){more}"
        )


def to_local(array: jax.Array, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Return this process's rows of a global array, the inverse of `to_global`."""
    if array.is_fully_addressable:
        return np.asarray(array)
    pieces = {s.index[0].start or 0: s.data for s in _by_rows(mesh)(array).addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


@functools.cache
def _by_rows(mesh: jax.sharding.Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=batch_sharding(mesh))


def check_heads(heads: int, kv_heads: int, mesh: jax.sharding.Mesh) -> None:
    """Check that every chip gets whole attention heads.

    Raises:
        InputError: they do not divide over `tensor`; the message names the legal sizes.
    """
    if kv_heads % mesh.shape["tensor"]:
        legal = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0]
        raise InputError(
            f"{heads} query and {kv_heads} key/value heads do not divide over "
            f"tensor={mesh.shape['tensor']}; mesh.tensor may be {', '.join(map(str, legal))}"
        )


def to_global(batch: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Return global arrays of this process's rows of a batch (NumPy), or of any tree of such.

    Raises:
        InputError: the rows do not divide the mesh.
    """
    check_rows(len(jax.tree.leaves(batch)[0]) * jax.process_count(), mesh)
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda values: jax.make_array_from_process_local_data(sharding, values), batch
    )
