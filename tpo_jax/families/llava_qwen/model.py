"""LongVA, LLaVA-Video and LLaVA-OneVision: everything before the decoder.

The order is the original's (`encode_images` and `get_2dPool` in `llava/model/llava_arch.py`): the
tower, the projector on every patch, then pooling, then newline tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpo_jax.families.llava_qwen.config import LlavaQwenConfig
from tpo_jax.families.llava_qwen.vision import Tower
from tpo_jax.models.batch import Array, Batch
from tpo_jax.models.blocks import Projections
from tpo_jax.models.decoder import Decoder
from tpo_jax.models.frames import map_frames
from tpo_jax.models.vlm import VideoLanguageModel
from tpo_jax.parallel.sharding import ALL, ROWS, WITHIN_ROW, constrain


class Projector(nnx.Module):
    """Linear, exact GELU, linear; frames are sharded over all chips."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(inputs, outputs, rngs=rngs)
        self.fc2 = nnx.Linear(outputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = constrain(jax.nn.gelu(self.fc1(x), approximate=False), ALL, None, None)
        return constrain(self.fc2(x), ALL, None, None)


def _bilinear_matrix(source: int, target: int) -> np.ndarray:
    """Return weights `[target, source]` of a bilinear resize with half-pixel centres."""
    at = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    low = np.floor(at).astype(int)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] += 1 - (at - low)
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += at - low
    return matrix


def pool(x: jax.Array, mode: str) -> jax.Array:
    """Pool every frame's grid 2x2.

    Args:
        x: `[n, g, g, D]`.
        mode: `average`, `max` (both drop an odd last row and column) or `bilinear` (rounds the
            side up).

    Returns:
        `[n, g', g', D]`.
    """
    n, g, _, D = x.shape
    if mode == "bilinear":
        matrix = jnp.asarray(_bilinear_matrix(g, (g + 1) // 2), x.dtype)
        return jnp.einsum("ig,jh,nghd->nijd", matrix, matrix, x)
    half = g // 2
    windows = x[:, : 2 * half, : 2 * half].reshape(n, half, 2, half, 2, D)
    return windows.mean(axis=(2, 4)) if mode == "average" else windows.max(axis=(2, 4))


class LlavaQwen(VideoLanguageModel):
    """LongVA, LLaVA-Video or LLaVA-OneVision, by config."""

    config: LlavaQwenConfig

    def __init__(self, config: LlavaQwenConfig, rngs: nnx.Rngs, projections: Projections):
        self.config = config
        D = config.decoder.width
        self.tower = Tower(config.tower, rngs)
        self.projector = Projector(config.tower.width, D, rngs)
        self.decoder = Decoder(config.decoder, rngs, projections)
        if config.has_newline:
            init = nnx.initializers.normal(D**-0.5)
            self.newline = nnx.Param(init(rngs.params(), (D,), jnp.float32))

    def encode(self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none") -> jax.Array:
        """Encode the videos of a batch or, where it has `patch_index`, its images: `[B, n, D]`.

        With `patch_index`, `n` is its `P`. Other arguments are those of `encode_frames`.
        """
        if batch.patch_index is None or batch.patch_weight is None:
            return self.encode_frames(batch.frames, freeze_tower=freeze_tower, remat=remat)
        index, weight = batch.patch_index, batch.patch_weight
        (B, n), D = batch.frames.shape[:2], self.config.decoder.width
        dtype = self.decoder.norm.scale[...].dtype
        newline = self.newline[...] if self.config.has_newline else jnp.zeros(D)
        table = jnp.broadcast_to(newline.astype(dtype), (B, 1, D))
        if n:
            patches = self._features(batch.frames, lambda x: x, freeze_tower, remat)
            table = jnp.concatenate([table, patches], axis=1)

        def part(k: int) -> jax.Array:
            taken = jnp.take_along_axis(table, index[..., k, None], axis=1)
            return constrain(taken, ROWS, None, WITHIN_ROW) * weight[..., k, None]

        return sum(part(k) for k in range(4)).astype(dtype)

    def encode_frames(
        self, frames: Array, *, freeze_tower: bool = False, remat: str = "none"
    ) -> jax.Array:
        """Encode frames uint8 `[B, F, S, S, 3]` to visual tokens `[B, F * V (+ 1), D]`.

        With `freeze_tower` no gradient enters the tower and none of its activations is kept.
        `remat` other than `none` keeps only the inputs of tower layers and of the projector.
        """
        x = self._features(frames, self._pooled, freeze_tower, remat)
        if self.config.newline == "one_token":
            newline = self.newline[...].astype(x.dtype)
            newline = jnp.broadcast_to(newline, (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([x, newline], axis=1)
        return x

    def _features(
        self,
        frames: Array,
        finish: Callable[[jax.Array], jax.Array],
        freeze_tower: bool,
        remat: str,
    ) -> jax.Array:
        """Encode frames uint8 `[B, F, S, S, 3]` to `[B, F * n, D]`.

        `finish` maps projected patches, `[m, N, D]` to `[m, n, D]`.
        """

        def project(x: jax.Array) -> jax.Array:
            return finish(self.projector(x))

        def encode(frames: jax.Array) -> jax.Array:
            x = self.tower(frames, remat=remat != "none" and not freeze_tower)
            x = jax.lax.stop_gradient(x) if freeze_tower else x
            return (project if remat == "none" else jax.checkpoint(project))(x)

        return map_frames(frames, encode)

    def _pooled(self, x: jax.Array) -> jax.Array:
        """Pool projected patches `[m, N, D]` to the tokens of a frame, `[m, V, D]`."""
        config, g = self.config, self.config.tower.grid
        x = pool(x.reshape(len(x), g, g, -1), config.pooling)
        g, D = x.shape[1], x.shape[-1]
        if config.has_newline:
            newline = self.newline[...].astype(x.dtype)
        if config.newline == "grid":
            x = jnp.concatenate([x, jnp.broadcast_to(newline, (len(x), g, 1, D))], axis=2)
        x = x.reshape(len(x), -1, D)
        if config.newline == "frame":
            x = jnp.concatenate([x, jnp.broadcast_to(newline, (len(x), 1, D))], axis=1)
        return x
