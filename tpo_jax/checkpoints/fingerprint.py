"""A hash of a model's weights, which says what cached numbers were computed with."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def tensor_sums(params: Any) -> Any:
    """Return wrapping integer sums over the bits of every tensor; no mesh or order changes them."""

    def digest(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        # Not over a flattened copy, for which a mesh would gather the whole tensor.
        place, axes = jnp.uint32(0), range(x.ndim)
        for axis in axes:
            along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place + along * jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        mixed = (bits ^ (bits >> 16)) * jnp.uint32(0x45D9F3B) + place * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0x85EBCA6B)
        # One reduction of both: two would keep what they share, eight bytes a weight on a CPU.
        both, zero = (mixed, mixed ^ (mixed >> 7)), jnp.uint32(0)
        add = lambda a, b: (a[0] + b[0], a[1] + b[1])  # noqa: E731
        return jnp.stack(jax.lax.reduce(both, (zero, zero), add, tuple(axes)))

    return jax.tree.map(digest, params)


def weights_fingerprint(params: Any) -> str:
    """Return a hash of all parameter names and values, the same on any mesh.

    It tells weights apart that differ by mistake; it does not resist an adversary.
    """
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_flatten_with_path(jax.device_get(tensor_sums(params)))[0]:
        digest.update(jax.tree_util.keystr(path).encode() + value.tobytes())
    return digest.hexdigest()[:32]
