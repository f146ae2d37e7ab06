"""CLIP and SigLIP vision towers: uint8 frames in, patch features out.

CLIP runs all but its last block and drops the class token; SigLIP runs all but its last block and
never applies its post-norm (`clip_encoder.py` and `siglip_encoder.py` in `llava/model`). Weights
that cannot influence the output are not part of the model.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.parallel.sharding import ALL, constrain


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _norm(width: int, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


class TowerBlock(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        D = config.width
        eps = 1e-5 if config.kind == "clip" else 1e-6
        self.heads = config.heads
        self.clip = config.kind == "clip"
        self.norm1 = _norm(D, eps, rngs)
        self.q = nnx.Linear(D, D, rngs=rngs)
        self.k = nnx.Linear(D, D, rngs=rngs)
        self.v = nnx.Linear(D, D, rngs=rngs)
        self.out = nnx.Linear(D, D, rngs=rngs)
        self.norm2 = _norm(D, eps, rngs)
        self.fc1 = nnx.Linear(D, config.mlp_width, rngs=rngs)
        self.fc2 = nnx.Linear(config.mlp_width, D, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[n, N, D]`."""
        y = self.norm1(x)
        q, k, v = (
            z.reshape(*y.shape[:-1], self.heads, -1) for z in (self.q(y), self.k(y), self.v(y))
        )
        x = x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        y = self.fc1(self.norm2(x))
        y = _quick_gelu(y) if self.clip else jax.nn.gelu(y, approximate=True)
        return x + self.fc2(y)


class Tower(nnx.Module):
    """A CLIP or SigLIP tower up to the projector's input; frames are sharded over all chips."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        self.config = config
        D, p, N = config.width, config.patch_size, config.grid**2
        # Large enough for a tower trained from scratch to tell the corners of a frame apart.
        init = nnx.initializers.normal(0.2)
        self.patch = nnx.Linear(p * p * 3, D, use_bias=config.kind == "siglip", rngs=rngs)
        if config.kind == "clip":
            N += 1
            self.class_token = nnx.Param(init(rngs.params(), (D,), jnp.float32))
            self.pre_norm = _norm(D, 1e-5, rngs)
        self.position = nnx.Param(init(rngs.params(), (N, D), jnp.float32))
        self.layers = nnx.vmap(lambda r: TowerBlock(config, r))(rngs.split(config.layers))

    def __call__(self, frames: jax.Array, *, remat: bool = False) -> jax.Array:
        """Encode uint8 `[n, S, S, 3]` to features `[n, N, width]` in the dtype of the weights.

        With `remat` the backward pass recomputes every layer from its input.
        """
        config, dtype = self.config, self.position[...].dtype
        g, p = config.grid, config.patch_size
        # A convolution with stride = kernel; what does not fill a patch is unused (SigLIP: 384 =
        # 27 * 14 + 6). Pixels are rearranged as bytes, before the cast, and with colours merged
        # into pixel rows: a last dimension of 3 would be padded to 128 on a TPU.
        x = frames.reshape(*frames.shape[:2], -1)[:, : g * p, : g * p * 3]
        x = x.reshape(-1, g, p, g, p * 3).swapaxes(2, 3).reshape(-1, g * g, p * p * 3)
        x = x.astype(jnp.float32) * jnp.float32(1 / 255)
        mean, std = (jnp.tile(jnp.array(c, jnp.float32), p * p) for c in (config.mean, config.std))
        x = self.patch(((x - mean) / std).astype(dtype))
        if config.kind == "clip":
            first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, config.width))
            x = self.pre_norm(jnp.concatenate([first, x], axis=1) + self.position[...])
        else:
            x = x + self.position[...]

        definition, layers = nnx.split(self.layers)

        def layer(x: jax.Array, weights: nnx.State) -> tuple[jax.Array, None]:
            return constrain(nnx.merge(definition, weights)(x), ALL, None, None), None

        x = constrain(x, ALL, None, None)
        x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, layers)
        return x[:, 1:] if config.kind == "clip" else x
