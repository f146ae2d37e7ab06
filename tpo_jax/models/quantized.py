"""Weights of a frozen decoder in 8 or 4 bits, dequantized where a layer is computed.

Kernels `[in, out]` are stored as integers and float32 scales: `int8` with one scale per output
channel, `int4` with one per output channel and group of `GROUP` inputs. Steps are uniform and
symmetric about zero, rounded to nearest, so a weight is off by half a scale at most, and no data is
needed to calibrate. Adapters beside such a kernel are trained as in QLoRA (arXiv 2305.14314).
Embedding, head, norms, biases and the vision tower keep their dtype.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from tpo_jax.errors import InputError
from tpo_jax.models.lora import PROJECTIONS
from tpo_jax.parallel.programs import LayerwiseProgram
from tpo_jax.parallel.sharding import parameter_shardings

LARGEST = {"int8": 127, "int4": 7}  # largest stored integer, by name of the dtype
CHOICES = ("", *LARGEST)  # values of a flag; empty: the weights as stored
GROUP = 128
SCALE = "kernel_scale"  # name of the parameter beside `kernel`
_QUANTIZED = re.compile(rf"decoder/layers/({'|'.join(PROJECTIONS.values())})/kernel")


def check_weights(flag: str, weights: str) -> None:
    """Raise InputError unless `weights` is one of `CHOICES`."""
    if weights not in CHOICES:
        raise InputError(f"{flag}={weights!r} must be one of {', '.join(LARGEST)}, or empty")


def is_quantized(path: str, weights: str) -> bool:
    """Return whether a parameter is held quantized under `weights`, one of `CHOICES`."""
    return bool(weights and _QUANTIZED.fullmatch(path))


def quantize(kernel: jax.Array, weights: str) -> tuple[jax.Array, jax.Array]:
    """Quantize a stack of kernels, layer by layer.

    Args:
        kernel: float `[L, in, out]`.
        weights: `int8` or `int4`.

    Returns:
        Integers int8 or int4 `[L, in, out]`, and the scales float32 `[L, groups, out]`.
    """
    largest, inputs = LARGEST[weights], kernel.shape[1]
    group = inputs if weights == "int8" else math.gcd(inputs, GROUP)

    def layer(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = kernel.astype(jnp.float32).reshape(inputs // group, group, -1)
        scale = jnp.abs(parts).max(axis=1, keepdims=True) / largest
        rounded = jnp.round(parts / jnp.where(scale > 0, scale, 1))
        values = jnp.clip(rounded, -largest, largest).astype(weights)
        return values.reshape(kernel.shape), scale[:, 0]

    return jax.lax.map(layer, kernel)


def quantize_leaf(path: str, kernel: jax.Array, weights: str) -> dict[str, jax.Array]:
    """Return the two parameters that take the place of a loaded kernel, by path.

    Over a mesh they are sharded by the table of `parallel.sharding`.
    """
    paths = path, path.removesuffix("kernel") + SCALE
    where: Any = kernel.sharding
    if isinstance(where, jax.NamedSharding):
        shapes = jax.eval_shape(functools.partial(quantize, weights=weights), kernel)
        shardings = parameter_shardings(where.mesh, dict(zip(paths, shapes, strict=True)))
        where = shardings[paths[0]], shardings[paths[1]]
    # Wait before the next kernel is read: the program holds this one until it ends.
    found = jax.block_until_ready(_program(weights, where)(kernel))
    return dict(zip(paths, found, strict=True))


@functools.cache
def _program(weights: str, where: Any) -> LayerwiseProgram:
    return LayerwiseProgram(functools.partial(quantize, weights=weights), out_shardings=where)


def quantize_params(params: dict, weights: str) -> dict:
    """Return a model's parameters with the kernels of the decoder's layers quantized."""
    layers = dict(params["decoder"]["layers"])
    for name in PROJECTIONS.values():
        values, scale = quantize(layers[name]["kernel"], weights)
        layers[name] = {**layers[name], "kernel": values, SCALE: scale}
    return {**params, "decoder": {**params["decoder"], "layers": layers}}


def dequantize(values: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Return the kernel `[in, out]` from its integers `[in, out]` and scales `[groups, out]`."""
    groups, outputs = scale.shape
    parts = values.astype(jnp.float32).reshape(groups, -1, outputs) * scale[:, None]
    return parts.reshape(values.shape).astype(dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """Return `[..., in]` times a quantized kernel, `[..., out]`, in the dtype of `x`.

    The backward pass dequantizes again: kept, the kernels of all layers would be as large as the
    decoder that was quantized.
    """
    return x @ dequantize(values, scale, x.dtype)
