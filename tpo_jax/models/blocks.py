"""One decoder layer of Qwen2 or Qwen3, applied to the two streams of a row.

Numerics are those of `modeling_qwen2.py` and `modeling_qwen3.py` in Hugging Face `transformers`:
RMSNorm in float32, cast back, then scaled; rotary cos and sin in float32, cast to the activation
dtype; softmax in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tpo_jax.errors import InputError
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.quantized import product
from tpo_jax.models.rotary import Rope, rotate
from tpo_jax.parallel.attention import Keys, continuation_attention, prefix_attention
from tpo_jax.parallel.sharding import ROWS, constrain

Cache = tuple[jax.Array, jax.Array]  # keys and values
# Tensors of a layer that a remat table may name, in the order they are computed: `qkv` rotated
# queries, keys and values, `attention` the output of attention, `residual` the stream between
# attention and MLP, `mlp` the MLP's two inner products.
REMAT_TENSORS = ("qkv", "attention", "residual", "mlp")
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat_policy(name: str) -> Callable | None:
    """Return which tensors of a layer the backward pass keeps and which it recomputes, as a policy
    of `jax.checkpoint`.

    Args:
        name: one of `REMAT_POLICIES`, or a table, `attention:save,mlp:offload`: tensors of
            `REMAT_TENSORS` to keep on the device or in host memory; the others, and those marked
            `recompute`, are recomputed.

    Raises:
        InputError: no such policy, tensor or place.
    """
    if name in REMAT_POLICIES:
        return REMAT_POLICIES[name]
    table = dict(entry.partition(":")[::2] for entry in name.split(","))
    places = ("save", "offload", "recompute")
    if set(table) - set(REMAT_TENSORS) or set(table.values()) - set(places):
        raise InputError(
            f"compute.remat={name!r} is unknown; choose one of {sorted(REMAT_POLICIES)}, or a "
            f"table TENSOR:PLACE,… with tensors {', '.join(REMAT_TENSORS)} "
            f"and places {', '.join(places)}"
        )
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[k for k, place in table.items() if place == "save"],
        names_which_can_be_offloaded=[k for k, place in table.items() if place == "offload"],
        offload_src="device",
        offload_dst="pinned_host",
    )


class RMSNorm(nnx.Module):
    """Root-mean-square norm, statistics in float32."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...]


class Projections(NamedTuple):
    """Which parameters the projections of all layers have beside kernels and biases."""

    ranks: tuple[tuple[str, int], ...] = ()  # of the adapted ones, by name
    quantized: bool = False  # scales: the kernels are those of `models.quantized`


class Projection(nnx.Linear):
    """A linear layer, with a low-rank adapter beside it where `rank` is above 0."""

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, quantized: bool, **options: Any
    ) -> None:
        super().__init__(inputs, outputs, **options)
        self.rank, self.quantized = rank, quantized
        if quantized:
            self.kernel_scale = nnx.Param(jnp.zeros((1, outputs), jnp.float32))
        if rank:
            self.lora_a = nnx.Param(jnp.zeros((inputs, rank), jnp.float32))
            self.lora_b = nnx.Param(jnp.zeros((rank, outputs), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.quantized:
            y = product(x, self.kernel[...], self.kernel_scale[...])
            y = y if self.bias is None else y + self.bias[...]
        else:
            y = super().__call__(x)
        return y + (x @ self.lora_a[...]) @ self.lora_b[...] if self.rank else y


class Block(nnx.Module):
    """One decoder layer, applied to the prefix and to continuations."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, projections: Projections) -> None:
        D, C, ranks = config.width, config.head_dim, dict(projections.ranks)

        def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Projection:
            return Projection(
                inputs,
                outputs,
                rank=ranks.get(name, 0),
                quantized=projections.quantized,
                use_bias=bias,
                kernel_init=nnx.initializers.normal(D**-0.5),
                rngs=rngs,
            )

        self.input_norm = RMSNorm(D, config.norm_eps)
        self.q = linear("q", D, config.heads * C, bias=config.qkv_bias)
        self.k = linear("k", D, config.kv_heads * C, bias=config.qkv_bias)
        self.v = linear("v", D, config.kv_heads * C, bias=config.qkv_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(C, config.norm_eps) for _ in range(2))
        self.o = linear("o", config.heads * C, D)
        self.mlp_norm = RMSNorm(D, config.norm_eps)
        self.gate = linear("gate", D, config.mlp_width)
        self.up = linear("up", D, config.mlp_width)
        self.down = linear("down", config.mlp_width, D)
        self.head_dim, self.qk_norm = C, config.qk_norm

    def _qkv(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, ...]:
        """Return scaled queries `[..., H, C]`, keys and values `[..., K, C]` of `[..., D]`."""
        x = self.input_norm(x)
        q, k, v = (
            y.reshape(*x.shape[:-1], -1, self.head_dim) for y in (self.q(x), self.k(x), self.v(x))
        )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope) * self.head_dim**-0.5, rotate(k, *rope)
        return tuple(checkpoint_name(y, "qkv") for y in (q, k, v))

    def _finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        x = checkpoint_name(x + self.o(attended.reshape(*x.shape[:-1], -1)), "residual")
        y = self.mlp_norm(x)
        gate, up = (checkpoint_name(part(y), "mlp") for part in (self.gate, self.up))
        return x + self.down(jax.nn.silu(gate) * up)

    def prefix(
        self,
        x: jax.Array,
        rope: Rope,
        mask: jax.Array,
        back_end: str = "auto",
        zigzag: bool = False,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Apply the layer to `[B, P, D]`; also return keys and values `[B, P, K, C]`."""
        q, k, v = (constrain(z, ROWS, "context", "tensor", None) for z in self._qkv(x, rope))
        attended = prefix_attention(q, k, v, mask, back_end=back_end, zigzag=zigzag)
        return constrain(self._finish(x, attended), ROWS, "context", None), k, v

    def continuation(
        self, y: jax.Array, rope: Rope, prefix: Keys, own_mask: jax.Array
    ) -> jax.Array:
        """Apply the layer to `[B, M, R, D]`, which attends to the prefix and to itself.

        Args:
            prefix: keys, values and mask.
            own_mask: bool `[B, M, R, R]`.
        """
        q, k, v = self._qkv(y, rope)
        attended = continuation_attention(q, prefix, Keys(k, v, own_mask))
        return constrain(self._finish(y, attended), ROWS, None, None, None)

    def cached_continuation(
        self,
        y: jax.Array,
        rope: Rope,
        prefix: Keys,
        own_mask: jax.Array,
        cache: Cache,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, Cache]:
        """Apply the layer as `continuation`, with a cache of own keys and values.

        Args:
            y: `[B, M, R, D]`.
            prefix: keys, values and mask.
            own_mask: bool `[B, M, R, T]`.
            cache: keys and values `[B, M, T, K, C]`.
            slot: where in `T` the new ones are written.

        Returns:
            `[B, M, R, D]` and the updated cache.
        """
        q, k, v = self._qkv(y, rope)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)
            for old, new in zip(cache, (k, v), strict=True)
        )
        attended = continuation_attention(q, prefix, Keys(k, v, own_mask))
        return self._finish(y, attended), (k, v)
