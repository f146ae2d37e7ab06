"""The vision towers of Qwen3-VL and Qwen2.5-VL: padded patch sequences in, visual tokens out.

Patches come in blocks of 2x2, the blocks row by row, as the published processor orders them
(`patchify` in `transformers`' `video_processing_qwen3_vl.py`). The padding after them is masked
out of all attention, so it never changes a number.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpo_jax.families.qwen_vl.config import MEAN, MERGE, QWEN3, STD, TowerConfig
from tpo_jax.families.qwen_vl.windows import reordered, window_attention, window_order
from tpo_jax.models.blocks import RMSNorm
from tpo_jax.models.rotary import rotate
from tpo_jax.parallel.sharding import ALL, constrain

_THETA = 1e4  # base of the wavelengths of rows and columns
_EPS = 1e-6
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # of queries, keys, values


def places(grid: jax.Array, patches: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return row and column of every patch, and whether it is a real one.

    Args:
        grid: int32 `[m, 2]`, rows and columns of patches; zeros for an empty frame.
        patches: N.

    Returns:
        int32 `[m, N]` twice and bool `[m, N]`.
    """
    index, rows, columns = jnp.arange(patches), grid[:, :1], grid[:, 1:]
    block, inner = index // MERGE**2, index % MERGE**2
    across = jnp.maximum(columns // MERGE, 1)
    row = block // across * MERGE + inner // MERGE
    column = block % across * MERGE + inner % MERGE
    return row, column, index < rows * columns


def rotary(row: jax.Array, column: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine, float32 `[m, N, 1, C]`: a quarter of the angles is for the row, the
    next for the column, and the second half repeats them.
    """
    exponents = np.arange(0, head_dim // 2, 2) / (head_dim // 2)
    frequencies = jnp.asarray(_THETA**-exponents, jnp.float32)
    angles = [x.astype(jnp.float32)[..., None] * frequencies for x in (row, column)]
    angles = jnp.concatenate(angles * 2, axis=-1)[..., None, :]
    return jnp.cos(angles), jnp.sin(angles)


def interpolated(table: jax.Array, grid: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Return the learned position embeddings of patches, float32 `[m, N, D]`: the table is resized
    to the frame, bilinearly and with aligned corners.

    Args:
        table: `[side * side, D]`.
        grid: int32 `[m, 2]`.
        row: int32 `[m, N]`.
        column: int32 `[m, N]`.
    """
    side = round(table.shape[0] ** 0.5)

    def taps(index: jax.Array, size: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        at = index.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1)
        low = jnp.floor(at)
        below, above = (jnp.clip(low.astype(jnp.int32) + k, 0, side - 1) for k in (0, 1))
        return [(below, 1 - (at - low)), (above, at - low)]

    rows, columns = taps(row, grid[:, :1]), taps(column, grid[:, 1:])
    return sum(
        table[i * side + j].astype(jnp.float32) * (a * b)[..., None]
        for (i, a), (j, b) in itertools.product(rows, columns)
    )


def _norm(kind: str, width: int, rngs: nnx.Rngs) -> nnx.LayerNorm | RMSNorm:
    if kind != QWEN3:
        return RMSNorm(width, _EPS)
    return nnx.LayerNorm(width, epsilon=_EPS, use_fast_variance=False, rngs=rngs)


class TowerBlock(nnx.Module):
    """Pre-norm transformer block: LayerNorm and GELU, or for Qwen2.5-VL RMSNorm and gated SiLU."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs) -> None:
        D, M = config.width, config.mlp_width
        self.heads, self.gated = config.heads, config.kind != QWEN3
        self.norm1 = _norm(config.kind, D, rngs)
        self.qkv = nnx.Linear(D, 3 * D, rngs=rngs)
        self.out = nnx.Linear(D, D, rngs=rngs)
        self.norm2 = _norm(config.kind, D, rngs)
        self.fc1 = nnx.Linear(D, M, rngs=rngs)
        if self.gated:
            self.gate = nnx.Linear(D, M, rngs=rngs)
        self.fc2 = nnx.Linear(M, D, rngs=rngs)

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attention: Attention
    ) -> jax.Array:
        """Apply the block to `[m, N, D]`; `attention` of queries, keys and values
        `[m, N, H, C]`.
        """
        y = self.qkv(self.norm1(x))
        q, k, v = (z.reshape(*z.shape[:-1], self.heads, -1) for z in jnp.split(y, 3, axis=-1))
        # In float32, as `apply_rotary_pos_emb_vision` of `transformers`.
        q, k = (rotate(z.astype(jnp.float32), *rope).astype(z.dtype) for z in (q, k))
        x = x + self.out(attention(q, k, v).reshape(x.shape))
        y = self.norm2(x)
        if self.gated:
            return x + self.fc2(jax.nn.silu(self.gate(y)) * self.fc1(y))
        return x + self.fc2(jax.nn.gelu(self.fc1(y), approximate=True))


class Merger(nnx.Module):
    """Four patches of a block to one visual token: norm, linear, exact GELU, linear."""

    def __init__(
        self, config: TowerConfig, outputs: int, rngs: nnx.Rngs, *, joined: bool = False
    ) -> None:
        """Make the layers; with `joined` the norm is over the four patches together."""
        width = MERGE**2 * config.width
        self.joined = joined
        self.norm = _norm(config.kind, width if joined else config.width, rngs)
        self.fc1 = nnx.Linear(width, width, rngs=rngs)
        self.fc2 = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Merge `[m, N, W]` to `[m, N / 4, D]`."""
        blocks = (len(x), -1, self.fc1.kernel[...].shape[0])
        x = self.norm(x.reshape(blocks)) if self.joined else self.norm(x).reshape(blocks)
        x = constrain(jax.nn.gelu(self.fc1(x), approximate=False), ALL, None, None)
        return constrain(self.fc2(x), ALL, None, None)


class Tower(nnx.Module):
    """A tower without its mergers; frames are sharded over all chips."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        D = config.width
        self.patch = nnx.Linear(config.patch_pixels, D, use_bias=config.kind == QWEN3, rngs=rngs)
        if config.table:
            init = nnx.initializers.normal(0.2)
            self.position = nnx.Param(init(rngs.params(), (config.table**2, D), jnp.float32))
        self.layers = nnx.vmap(lambda r: TowerBlock(config, r))(rngs.split(config.layers))

    def __call__(
        self, patches: jax.Array, grid: jax.Array, *, remat: bool = False
    ) -> list[jax.Array]:
        """Return the outputs `[m, N, width]` of the last block and of the deepstack blocks.

        Args:
            patches: uint8 `[m, N, patch_pixels]`.
            grid: int32 `[m, 2]`, rows and columns of patches.
            remat: the backward pass recomputes every layer from its input.
        """
        config = self.config
        row, column, real = places(grid, patches.shape[1])
        # An empty frame attends to itself, so that no softmax has all its keys masked.
        mask = (real | ~real.any(-1, keepdims=True))[:, None, None]
        full = within = functools.partial(jax.nn.dot_product_attention, mask=mask)
        order = None
        if config.window:
            tokens = patches.shape[1] // MERGE**2
            order, windows = window_order(grid // MERGE, tokens, config.window)
            patches, row, column = (reordered(x, order) for x in (patches, row, column))
            within = functools.partial(
                window_attention,
                windows=jnp.repeat(windows, MERGE**2, axis=1),
                size=(MERGE * config.window) ** 2,
            )
        x = self._embedded(patches, grid, row, column)
        rope = rotary(row, column, config.width // config.heads)
        definition, layers = nnx.split(self.layers)

        def layer(attention: Attention, x: jax.Array, weights: nnx.State) -> tuple[jax.Array, None]:
            x = nnx.merge(definition, weights)(x, rope, attention)
            return constrain(x, ALL, None, None), None

        x, outputs = constrain(x, ALL, None, None), {}
        for start, end in itertools.pairwise(_ends(config)):
            part = jax.tree.map(lambda w, s=slice(start, end): w[s], layers)
            run = functools.partial(layer, full if start in config.full_blocks else within)
            x, _ = jax.lax.scan(jax.checkpoint(run) if remat else run, x, part)
            outputs[end - 1] = x
        taken = [outputs[i] for i in (config.layers - 1, *config.deepstack)]
        if order is None:
            return taken
        return [reordered(x, jnp.argsort(order, axis=-1)) for x in taken]

    def _embedded(
        self, patches: jax.Array, grid: jax.Array, row: jax.Array, column: jax.Array
    ) -> jax.Array:
        """Return the patches uint8 `[m, N, patch_pixels]`, normalised and embedded."""
        config, dtype = self.config, self.patch.kernel[...].dtype
        pixels = config.patch_pixels // 3
        mean, std = (
            jnp.repeat(jnp.array(c[config.kind], jnp.float32), pixels) for c in (MEAN, STD)
        )
        x = patches.astype(jnp.float32) * jnp.float32(1 / 255)
        x = self.patch(((x - mean) / std).astype(dtype))
        if not config.table:
            return x
        return x + interpolated(self.position[...], grid, row, column).astype(dtype)


def _ends(config: TowerConfig) -> list[int]:
    """Return the bounds of runs of layers: those of a run have the same attention, and only the
    output of the last one is used outside the run.
    """
    ends = {0, config.layers, *(i + 1 for i in config.deepstack)}
    return sorted(ends.union(*({i, i + 1} for i in config.full_blocks)))
