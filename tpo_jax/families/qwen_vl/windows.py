"""Attention within windows of a frame, in one static shape for frames of every shape.

Patches are put in window order, windows one after the other without padding between them, as
`get_vision_window_index` of `transformers` orders them. A window is at most S patches long, so in
chunks of S patches every window lies within a chunk and its two neighbours: each chunk attends to
these three, and a mask keeps the patches of a query's window. That is exact, and costs 3 S keys a
query however large frames are. Windows padded to S each would take up to four times the patches
for a frame of one row, and a mask over whole frames all of their products.
"""

import jax
import jax.numpy as jnp

_NONE = -2  # window of the padding before the first chunk and after the last one


def window_order(grid: jax.Array, tokens: int, side: int) -> tuple[jax.Array, jax.Array]:
    """Return which visual token of a frame comes at each place in window order, and its window.

    Args:
        grid: int32 `[m, 2]`, rows and columns of visual tokens; zeros for an empty frame.
        tokens: V.
        side: of a window, visual tokens; windows at the right and lower edges are smaller.

    Returns:
        int32 `[m, V]` twice: places of the padding stay, and its window is -1.
    """
    index, rows, columns = jnp.arange(tokens), grid[:, :1], grid[:, 1:]
    across = jnp.maximum(columns, 1)
    band, inside = index // (side * across), index % (side * across)
    height = jnp.clip(rows - side * band, 1, side)
    window, inside = inside // (side * height), inside % (side * height)
    width = jnp.clip(columns - side * window, 1, side)
    row, column = side * band + inside // width, side * window + inside % width
    real = index < rows * columns
    number = band * -(-across // side) + window
    return jnp.where(real, row * columns + column, index), jnp.where(real, number, -1)


def reordered(x: jax.Array, order: jax.Array) -> jax.Array:
    """Return `[m, N, ...]` with the patches of visual tokens in another order `[m, V]`."""
    blocks = x.reshape(*order.shape, -1)
    return jnp.take_along_axis(blocks, order[..., None], axis=1).reshape(x.shape)


def window_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, windows: jax.Array, size: int
) -> jax.Array:
    """Return the attention of patches to those of their own window, `[m, N, H, C]`.

    Args:
        q: `[m, N, H, C]`, in window order, as `k` and `v`.
        windows: int32 `[m, N]`, not below -1; patches of one window stand together.
        size: S, most patches of a window.
    """
    m, N = windows.shape
    chunks = -(-N // size)

    def chunked(x: jax.Array, fill: int = 0) -> jax.Array:
        """Return `[m, chunks, S, ...]`."""
        pad = ((0, 0), (0, chunks * size - N), *((0, 0),) * (x.ndim - 2))
        return jnp.pad(x, pad, constant_values=fill).reshape(m, chunks, size, *x.shape[2:])

    def near(x: jax.Array, fill: int = 0) -> jax.Array:
        """Return chunks `[m, chunks, S, ...]` between their neighbours, `[m, chunks, 3 S, ...]`."""
        x = jnp.pad(x, ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
        return jnp.concatenate([x[:, i : i + chunks] for i in range(3)], axis=2)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(m * chunks, *x.shape[2:])

    own = chunked(windows, -1)  # padding sees itself: no softmax has all its keys masked
    mask = own[:, :, None, :, None] == near(own, _NONE)[:, :, None, None, :]
    keys, values = near(chunked(k)), near(chunked(v))
    out = jax.nn.dot_product_attention(flat(chunked(q)), flat(keys), flat(values), mask=flat(mask))
    return out.reshape(m, chunks * size, *q.shape[2:])[:, :N]
