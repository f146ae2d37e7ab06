"""Qwen2 decoder over the two streams of a row: the prefix and its continuations.

Numerics are those of `modeling_qwen2.py` in Hugging Face `transformers`: RMSNorm in float32, cast
back, then scaled; rotary cos and sin in float32, cast to the activation dtype; softmax in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tpo_jax.errors import InputError
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.quantized import product
from tpo_jax.parallel.attention import Keys, continuation_attention, prefix_attention
from tpo_jax.parallel.sharding import ROWS, axis_size, constrain, constrain_layer
from tpo_jax.parallel.splash import zigzag_positions

Rope = tuple[jax.Array, jax.Array]  # cosine and sine, `[..., 1, C]`
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


def rotary(positions: jax.Array, head_dim: int, theta: float, dtype: Any) -> Rope:
    """Return cosine and sine of the rotary embedding.

    Args:
        positions: int `[...]`.
        head_dim: C.
        theta: base of the wavelengths.
        dtype: activation dtype; the angles themselves are float32.

    Returns:
        Two arrays `[..., 1, C]`, ready to broadcast over heads.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # Powers rounded once, as in PyTorch: NumPy's float32 power is one unit off for a fifth of the
    # frequencies, which changes the angle at position 432,000 by 0.03.
    powers = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[..., None, :]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


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
        self.q = linear("q", D, config.heads * C, bias=True)
        self.k = linear("k", D, config.kv_heads * C, bias=True)
        self.v = linear("v", D, config.kv_heads * C, bias=True)
        self.o = linear("o", config.heads * C, D)
        self.mlp_norm = RMSNorm(D, config.norm_eps)
        self.gate = linear("gate", D, config.mlp_width)
        self.up = linear("up", D, config.mlp_width)
        self.down = linear("down", config.mlp_width, D)
        self.head_dim = C

    def _qkv(self, x: jax.Array, rope: Rope) -> tuple[jax.Array, ...]:
        """Return scaled queries `[..., H, C]`, keys and values `[..., K, C]` of `[..., D]`."""
        x = self.input_norm(x)
        q, k, v = (
            y.reshape(*x.shape[:-1], -1, self.head_dim) for y in (self.q(x), self.k(x), self.v(x))
        )
        q, k = _rotate(q, *rope) * self.head_dim**-0.5, _rotate(k, *rope)
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


class Decoder(nnx.Module):
    """Embedding, `L` stacked layers scanned over, final norm and head.

    The head is applied by the caller, to the positions that need it. Arguments are those of
    `Block`.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, projections: Projections) -> None:
        self.config = config
        init = nnx.initializers.normal(config.width**-0.5)
        # Text enters the residual stream at the scale at which the projector puts visual tokens. A
        # tied table has the scale of a head.
        table = init if config.tied else nnx.initializers.normal(1.0)
        self.embed = nnx.Embed(config.vocab_size, config.width, embedding_init=table, rngs=rngs)
        self.embed.dtype = None  # follows the weights in use, not the initial ones
        self.layers = nnx.vmap(lambda r: Block(config, r, projections))(rngs.split(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied:
            self.head = nnx.Linear(
                config.width, config.vocab_size, use_bias=False, kernel_init=init, rngs=rngs
            )

    @property
    def head_kernel(self) -> jax.Array:
        """Return what hidden states are multiplied with for logits, `[D, W]`."""
        return self.embed.embedding[...].T if self.config.tied else self.head.kernel[...]

    def rope(self, positions: jax.Array, dtype: Any) -> Rope:
        """Return the rotary tables of int `[...]` positions."""
        return rotary(positions, self.config.head_dim, self.config.rope_theta, dtype)

    def _scan(
        self,
        body: Callable[[Block, Any, Any], tuple[Any, Any]],
        carry: Any,
        xs: Any = (),
        remat: str = "none",
        scan: bool = True,
    ) -> tuple[Any, Any]:
        """Apply `body(block, carry, x)` layer by layer, as `jax.lax.scan` does."""
        definition, layers = nnx.split(self.layers)

        def layer(carry: Any, inputs: Any) -> tuple[Any, Any]:
            weights, x = inputs
            # Without the barrier XLA keeps the residual streams for the backward pass in float32,
            # to which the norms convert them.
            carry = jax.lax.optimization_barrier(carry)
            weights = constrain_layer(weights, "decoder/layers")
            return body(nnx.merge(definition, weights), carry, x)

        if remat != "none":
            layer = jax.checkpoint(layer, policy=remat_policy(remat), prevent_cse=False)
        return jax.lax.scan(layer, carry, (layers, xs), unroll=not scan)

    def row(
        self,
        x: jax.Array,
        prefix_mask: jax.Array,
        y: jax.Array,
        input_mask: jax.Array,
        *,
        target_at: jax.Array | None = None,
        remat: str = "none",
        back_end: str = "auto",
        scan: bool = True,
    ) -> jax.Array:
        """Run both streams of a row through all layers.

        Over a `context` axis the prefix is put in zig-zag order first: only attention and the
        rotary tables depend on positions.

        Args:
            x: `[B, P, D]` embedded prefix.
            prefix_mask: bool `[B, P]`.
            y: `[B, M, R, D]` embedded continuations.
            input_mask: bool `[B, M, R]`.
            target_at: int `[B, M, R]` or None, positions of the prefix whose hidden states replace
                those of a continuation; -1: its own.
            remat: see `remat_policy`.
            back_end: of `prefix_attention`.
            scan: layers in a loop; false: unrolled, slower to compile.

        Returns:
            Normed hidden states of the continuations, `[B, M, R, D]`.
        """
        rope_y = self.rope(continuation_positions(prefix_mask, input_mask), y.dtype)
        own_mask = causal(input_mask)
        positions, chips = prefix_positions(prefix_mask), axis_size("context")
        if zigzag := chips > 1:
            order = zigzag_positions(x.shape[1], chips)
            # Whole sequences of a part of the width: the permutation stays on the chip.
            x = constrain(x, ROWS, None, "context")[:, order]
            positions, prefix_mask = positions[:, order], prefix_mask[:, order]
        x = constrain(x, ROWS, "context", None)
        rope_x = self.rope(constrain(positions, ROWS, "context"), x.dtype)

        def body(block: Block, carry: Any, _: Any) -> tuple[Any, None]:
            x, y = carry
            x, k, v = block.prefix(x, rope_x, prefix_mask, back_end, zigzag)
            return (x, block.continuation(y, rope_y, Keys(k, v, prefix_mask), own_mask)), None

        (x, y), _ = self._scan(body, (x, y), remat=remat, scan=scan)
        if target_at is not None:
            places = jnp.maximum(target_at, 0).reshape(len(x), -1, 1)
            places = jnp.asarray(np.argsort(order))[places] if zigzag else places
            there = jnp.take_along_axis(x, places, axis=1).reshape(y.shape)
            y = jnp.where(target_at[..., None] >= 0, there, y)
        return self.norm(y)

    def sequence(self, x: jax.Array, mask: jax.Array, *, remat: str = "none") -> jax.Array:
        """Return normed hidden states `[B, P, D]` of one causal stream `[B, P, D]`."""
        rope = self.rope(prefix_positions(mask), x.dtype)

        def body(block: Block, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return block.prefix(x, rope, mask)[0], None

        return self.norm(self._scan(body, x, remat=remat)[0])

    def prefill(self, x: jax.Array, mask: jax.Array) -> Cache:
        """Return keys and values `[L, B, P, K, C]` of a prefix `[B, P, D]`."""
        rope = self.rope(prefix_positions(mask), x.dtype)

        def body(block: Block, x: jax.Array, _: Any) -> tuple[jax.Array, Cache]:
            x, k, v = block.prefix(x, rope, mask)
            return x, (k, v)

        return self._scan(body, x)[1]

    def extend(
        self,
        y: jax.Array,
        positions: jax.Array,
        prefix: Cache,
        prefix_mask: jax.Array,
        cache: Cache,
        slot: jax.Array | int,
        own_mask: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Decode `R` more tokens of every continuation, with caches.

        Args:
            y: `[B, M, R, D]` embedded tokens.
            positions: int `[B, M, R]`.
            prefix: of `prefill`.
            prefix_mask: bool `[B, P]`.
            cache: own keys and values `[L, B, M, T, K, C]`.
            slot: int scalar, where in `T` the new tokens are written.
            own_mask: bool `[B, M, R, T]`.

        Returns:
            Normed hidden states `[B, M, R, D]` and the updated cache.
        """
        rope = self.rope(positions, y.dtype)

        def body(block: Block, y: jax.Array, layer: Any) -> tuple[jax.Array, Cache]:
            (k, v), own = layer
            seen = Keys(k, v, prefix_mask)
            return block.cached_continuation(y, rope, seen, own_mask, own, slot)

        y, cache = self._scan(body, y, xs=(prefix, cache))
        return self.norm(y), cache


def prefix_positions(mask: jax.Array) -> jax.Array:
    """Return positions int32 `[B, P]`; padding is not counted."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def continuation_positions(prefix_mask: jax.Array, input_mask: jax.Array) -> jax.Array:
    """Return positions int32 `[B, M, R]`: every continuation starts where the prefix ends."""
    return prefix_mask.sum(-1, dtype=jnp.int32)[:, None, None] + prefix_positions(input_mask)


def causal(mask: jax.Array) -> jax.Array:
    """Return a causal mask bool `[..., R, R]` over the real tokens, bool `[..., R]`."""
    R = mask.shape[-1]
    return jnp.tril(jnp.ones((R, R), bool)) & mask[..., None, :]
