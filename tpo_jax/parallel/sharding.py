"""One table says how everything is laid out over the mesh.

Weights are split over `fsdp` and `context` together (a long video needs the context axis, and its
chips should carry their share of the state) and, inside a layer, over `tensor`. Rows of a batch
are split over `data` and `fsdp`.
"""

import contextlib
import functools
import math
import re
from typing import TypeVar

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
)


def axis_size(name: str) -> int:
    """Size of an axis of the mesh in context (`jax.set_mesh`), 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def constrain(x: jax.Array, *spec) -> jax.Array:
    """`x` laid out as `P(*spec)` over the mesh in context; `x` itself without one.

    Raises:
        InputError: a dimension does not divide its mesh axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    _check(mesh, "an activation", x.shape, P(*spec))
    return jax.lax.with_sharding_constraint(x, P(*spec))


def vocabulary_axes(size: int) -> tuple[str, ...] | None:
    """What logits are split over on the mesh in context; None where it does not divide them."""
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


def _spec(mesh, name: str, shape: tuple[int, ...]) -> P:
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


def constrain_layer(weights, path: str):
    """One layer's slice of the stacked weights under `path`, laid out as they are stored.

    It changes the backward pass: each chip then gets its part of the sum of a gradient over the
    rows (reduce-scatter) and not all of it (all-reduce).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weights

    def leaf(keys, x):
        name = jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")
        return constrain(x, *_spec(mesh, f"{path}/{name}", (1, *x.shape))[1:])

    return jax.tree_util.tree_map_with_path(leaf, weights)


def parameter_shardings(mesh: jax.sharding.Mesh, tree):
    """NamedSharding for every leaf of a tree whose paths end in parameter paths (optimizer moments
    too).

    Raises:
        InputError: a dimension does not divide its mesh axes.
        KeyError: a parameter that the table does not name.
    """

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:
            return jax.NamedSharding(mesh, P())
        return jax.NamedSharding(mesh, _spec(mesh, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Rows over `data` and `fsdp`; for every array of a batch."""
    return jax.NamedSharding(mesh, P(ROWS))


def check_rows(rows: int, mesh: jax.sharding.Mesh, micro_batches: int = 1) -> None:
    """Every device takes the same number of rows, in every micro-batch.

    Raises:
        InputError: it cannot, with the nearest numbers of rows with which it can.
    """
    parts = math.prod(mesh.shape[axis] for axis in ROWS) * micro_batches
    if rows % parts:
        by = "data*fsdp" if micro_batches == 1 else "data*fsdp*micro_batches"
        near = max(rows // parts, 1) * parts
        raise InputError(
            f"{rows} rows per batch do not divide over {by}={parts}; "
            f"use {near} or {near + parts} rows (train.batch_size / data.pairs_per_row)"
        )


def to_local(array: jax.Array, mesh: jax.sharding.Mesh) -> np.ndarray:
    """This process's rows of a global array: what `to_global` was given, as far as rows go."""
    if array.is_fully_addressable:
        return np.asarray(array)
    pieces = {s.index[0].start or 0: s.data for s in _by_rows(mesh)(array).addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


@functools.cache
def _by_rows(mesh: jax.sharding.Mesh):
    return jax.jit(lambda x: x, out_shardings=batch_sharding(mesh))


def check_heads(heads: int, kv_heads: int, mesh: jax.sharding.Mesh) -> None:
    """Every chip takes whole heads.

    Raises:
        InputError: they do not divide over `tensor`, with the sizes that do.
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
