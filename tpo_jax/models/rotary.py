"""Rotary tables and the positions they are made of.

A text token has one position. A visual token of the Qwen-VL families has three, for time, height
and width, and each wavelength turns with one of them; a text token there has three equal ones.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Rope: TypeAlias = tuple[jax.Array, jax.Array]  # cosine and sine, `[..., 1, C]`


def rotary(
    positions: jax.Array,
    head_dim: int,
    theta: float,
    dtype: Any,
    axes: np.ndarray | None = None,
) -> Rope:
    """Return cosine and sine of the rotary embedding.

    Args:
        positions: int `[...]`; with `axes` int `[..., 3]`.
        head_dim: C.
        theta: base of the wavelengths.
        dtype: activation dtype; the angles themselves are float32.
        axes: of `rotary_axes`.

    Returns:
        Two arrays `[..., 1, C]`, ready to broadcast over heads.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # Powers rounded once, as in PyTorch: NumPy's float32 power is one unit off for a fifth of the
    # frequencies, which changes the angle at position 432,000 by 0.03.
    powers = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    turns = positions.astype(jnp.float32)
    angles = (turns[..., None] if axes is None else turns[..., axes]) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[..., None, :]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotary_axes(sections: tuple[int, ...], interleaved: bool) -> np.ndarray:
    """Return which of three positions each wavelength turns with, int `[C / 2]` of 0, 1 and 2.

    Args:
        sections: wavelengths of time, height and width.
        interleaved: height and width take every third wavelength from the second and the third on,
            until they have theirs, as in `Qwen3VLTextRotaryEmbedding` of `transformers`; else the
            sections follow each other, as in `Qwen2_5_VLRotaryEmbedding`.
    """
    if not interleaved:
        return np.repeat(np.arange(3), sections)
    axes = np.zeros(sum(sections), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate `[..., C]` by a `Rope`."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def text_positions(mask: jax.Array) -> jax.Array:
    """Return positions int32 `[..., n]` of tokens one after the other; padding is not counted."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def continuation_positions(
    prefix_mask: jax.Array, input_mask: jax.Array, start: jax.Array | None = None
) -> jax.Array:
    """Return positions int32 `[B, M, R]`: every continuation starts where the prefix ends.

    Args:
        prefix_mask: bool `[B, P]`.
        input_mask: bool `[B, M, R]`.
        start: int32 `[B]`, the first position after the prefix; by default its number of tokens.
    """
    start = prefix_mask.sum(-1, dtype=jnp.int32) if start is None else start
    return start[:, None, None] + text_positions(input_mask)
