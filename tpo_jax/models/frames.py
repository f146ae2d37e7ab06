"""Frames spread over the chips that share a row, a few at a time through a vision tower."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tpo_jax.parallel.sharding import ALL, ROWS, WITHIN_ROW, axis_size, constrain

_FRAMES_AT_ONCE = 8  # per row and chip


def map_frames(
    frames: jax.Array,
    encode: Callable[[jax.Array], jax.Array],
    at_once: int = _FRAMES_AT_ONCE,
) -> jax.Array:
    """Return the tokens of all frames, `[B, F * n, D]`, split by width within a row.

    The frames of a row are split among its chips, and padded with empty frames to a number that
    divides.

    Args:
        frames: uint8 `[B, F, *frame_shape]`.
        encode: maps frames uint8 `[m, *frame_shape]`, over all chips, to tokens `[m, n, D]`.
        at_once: most frames of a row that a chip encodes at a time; fewer take less memory.
    """
    B, F = frames.shape[:2]
    chips = axis_size("tensor") * axis_size("context")
    chunks = -(-F // (chips * at_once))
    size = -(-F // (chips * chunks))
    filled = chips * chunks * size
    shape = [None] * (frames.ndim - 2)
    frames = jnp.pad(frames, ((0, 0), (0, filled - F), *((0, 0) for _ in shape)))
    frames = constrain(frames, ROWS, WITHIN_ROW, *shape)
    frames = frames.reshape(B, chips, chunks, size, *frames.shape[2:])

    def part(frames: jax.Array) -> jax.Array:
        """Encode uint8 `[B, chips, m, *frame_shape]` to `[B, chips, m * n, D]`."""
        flat = frames.reshape(-1, *frames.shape[3:])
        x = encode(constrain(flat, ALL, *shape))
        return x.reshape(B, chips, -1, x.shape[-1])

    if chunks == 1:
        x = part(frames[:, :, 0])[:, :, None]
    else:
        x = jnp.moveaxis(jax.lax.map(part, jnp.moveaxis(frames, 2, 0)), 0, 2)
    x = x.reshape(B, -1, x.shape[-1])
    return constrain(x, ROWS, None, WITHIN_ROW)[:, : F * (x.shape[1] // filled)]
