"""The vision tower of Qwen3-VL: padded patch sequences in, visual tokens out.

Patches come in blocks of 2x2, the blocks row by row, as the published processor orders them
(`patchify` in `transformers`' `video_processing_qwen3_vl.py`). The padding after them is no key of
any attention, so it never changes a number.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpo_jax.families.qwen_vl.config import MEAN, MERGE, STD, TowerConfig
from tpo_jax.models.rotary import rotate
from tpo_jax.parallel.sharding import ALL, constrain

_THETA = 1e4  # base of the wavelengths of rows and columns
_EPS = 1e-6


def places(grid: jax.Array, patches: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return row and column of every patch, and whether it is one.

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
    """Return cosine and sine, float32 `[m, N, 1, C]`: a quarter of the angles is of the row, the
    next of the column, and so again.
    """
    exponents = np.arange(0, head_dim // 2, 2) / (head_dim // 2)
    frequencies = jnp.asarray(_THETA**-exponents, jnp.float32)
    angles = [x.astype(jnp.float32)[..., None] * frequencies for x in (row, column)]
    angles = jnp.concatenate(angles * 2, axis=-1)[..., None, :]
    return jnp.cos(angles), jnp.sin(angles)


def interpolated(table: jax.Array, grid: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Return the learned positions of patches, the table stretched over the frame, corners on
    corners: `[m, N, D]` float32.

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


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=_EPS, use_fast_variance=False, rngs=rngs)


class TowerBlock(nnx.Module):
    """Pre-norm transformer block of Qwen3-VL."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs) -> None:
        D = config.width
        self.heads = config.heads
        self.norm1 = _norm(D, rngs)
        self.qkv = nnx.Linear(D, 3 * D, rngs=rngs)
        self.out = nnx.Linear(D, D, rngs=rngs)
        self.norm2 = _norm(D, rngs)
        self.fc1 = nnx.Linear(D, config.mlp_width, rngs=rngs)
        self.fc2 = nnx.Linear(config.mlp_width, D, rngs=rngs)

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], mask: jax.Array
    ) -> jax.Array:
        """Apply the block to `[m, N, D]`; `mask` bool `[m, 1, 1, N]`, the keys seen."""
        y = self.qkv(self.norm1(x))
        q, k, v = (z.reshape(*z.shape[:-1], self.heads, -1) for z in jnp.split(y, 3, axis=-1))
        # In float32, as `apply_rotary_pos_emb_vision` of `transformers`.
        q, k = (rotate(z.astype(jnp.float32), *rope).astype(z.dtype) for z in (q, k))
        x = x + self.out(jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape))
        y = jax.nn.gelu(self.fc1(self.norm2(x)), approximate=True)
        return x + self.fc2(y)


class Merger(nnx.Module):
    """Four patches of a block to one visual token: norm, linear, exact GELU, linear."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, joined: bool) -> None:
        """Make the layers; with `joined` the norm is over the four patches together."""
        width = MERGE**2 * inputs
        self.joined = joined
        self.norm = _norm(width if joined else inputs, rngs)
        self.fc1 = nnx.Linear(width, width, rngs=rngs)
        self.fc2 = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Merge `[m, N, W]` to `[m, N / 4, D]`."""
        blocks = (len(x), -1, self.fc1.kernel[...].shape[0])
        x = self.norm(x.reshape(blocks)) if self.joined else self.norm(x).reshape(blocks)
        x = constrain(jax.nn.gelu(self.fc1(x), approximate=False), ALL, None, None)
        return constrain(self.fc2(x), ALL, None, None)


class Tower(nnx.Module):
    """Qwen3-VL's tower before its mergers; frames lie over all chips."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        D = config.width
        init = nnx.initializers.normal(0.2)
        self.patch = nnx.Linear(config.patch_pixels, D, rngs=rngs)
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
        config, dtype = self.config, self.patch.kernel[...].dtype
        pixels = config.patch_pixels // 3
        mean, std = (jnp.repeat(jnp.array(c, jnp.float32), pixels) for c in (MEAN, STD))
        x = patches.astype(jnp.float32) * jnp.float32(1 / 255)
        x = self.patch(((x - mean) / std).astype(dtype))
        row, column, real = places(grid, x.shape[1])
        x = x + interpolated(self.position[...], grid, row, column).astype(dtype)
        rope = rotary(row, column, config.width // config.heads)
        # An empty frame sees itself, so that no softmax is over nothing.
        mask = (real | ~real.any(-1, keepdims=True))[:, None, None]
        definition, layers = nnx.split(self.layers)

        def layer(x: jax.Array, weights: nnx.State) -> tuple[jax.Array, None]:
            return constrain(nnx.merge(definition, weights)(x, rope, mask), ALL, None, None), None

        x, outputs = constrain(x, ALL, None, None), []
        ends = [*(i + 1 for i in config.deepstack), config.layers]
        for start, end in itertools.pairwise([0, *ends]):
            if end > start:  # the last block may be one of deepstack's
                part = jax.tree.map(lambda w, s=slice(start, end): w[s], layers)
                x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, part)
            outputs.append(x)
        return [outputs[-1], *outputs[:-1]]
