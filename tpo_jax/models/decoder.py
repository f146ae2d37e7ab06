"""The decoder over the two streams of a row: the prefix and its continuations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpo_jax.models.blocks import Block, Cache, Projections, RMSNorm, remat_policy
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.rotary import (
    Rope,
    continuation_positions,
    rotary,
    rotary_axes,
    text_positions,
)
from tpo_jax.parallel.attention import Keys
from tpo_jax.parallel.sharding import ROWS, axis_size, constrain, constrain_layer
from tpo_jax.parallel.splash import zigzag_positions


class PrefixStream(NamedTuple):
    """The embedded prefix of every row, as the layers take it; rows are axis 0 everywhere."""

    x: jax.Array
    """`[B, P, D]`."""
    mask: jax.Array
    """bool `[B, P]`: real tokens; padding is on the right."""
    positions: jax.Array | None = None
    """int32 `[B, P, 3]`: time, height and width of tokens, of a decoder with `rope_sections`. None:
    those of text, one after the other."""
    end: jax.Array | None = None
    """int32 `[B]`: the position of the first token after the prefix; given with `positions`."""
    deepstack: jax.Array | None = None
    """`[B, n, P, D]`: what is added to the stream after each of the first `n` layers, zero where
    there is no visual token (DeepStack, arXiv 2406.04334)."""

    def token_positions(self) -> jax.Array:
        """Return the positions, int32 `[B, P]`, or `[B, P, 3]` where they have three axes."""
        return text_positions(self.mask) if self.positions is None else self.positions

    def zigzag(self, chips: int) -> "PrefixStream":
        """Return the stream with positions, its tokens in the order of `zigzag_positions`."""
        order = zigzag_positions(self.x.shape[1], chips)

        def whole(x: jax.Array) -> jax.Array:
            # A chip holds whole sequences of its part of the width, so the permutation is local.
            return constrain(x, ROWS, *[None] * (x.ndim - 2), "context")[..., order, :]

        return self._replace(
            x=whole(self.x),
            mask=self.mask[:, order],
            positions=self.token_positions()[:, order],
            deepstack=None if self.deepstack is None else whole(self.deepstack),
        )


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
        """Return the matrix that maps hidden states to logits, `[D, W]`."""
        return self.embed.embedding[...].T if self.config.tied else self.head.kernel[...]

    def rope(self, positions: jax.Array, dtype: Any) -> Rope:
        """Return the rotary tables of int `[...]` positions."""
        return rotary(positions, self.config.head_dim, self.config.rope_theta, dtype)

    def prefix_rope(self, positions: jax.Array, dtype: Any) -> Rope:
        """Return the rotary tables of `PrefixStream.token_positions`."""
        config = self.config
        if positions.ndim == 2:
            return self.rope(positions, dtype)
        axes = rotary_axes(config.rope_sections, config.rope_interleaved)
        return rotary(positions, config.head_dim, config.rope_theta, dtype, axes)

    def _levels(self, prefix: PrefixStream) -> Any:
        """Return the layers' numbers for `_scan` if there are DeepStack features, else ()."""
        return () if prefix.deepstack is None else jnp.arange(self.config.layers)

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
        prefix: PrefixStream,
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
            prefix: embedded.
            y: `[B, M, R, D]` embedded continuations.
            input_mask: bool `[B, M, R]`.
            target_at: int `[B, M, R]` or None, places of the prefix whose hidden states replace
                those of a continuation; -1: its own.
            remat: see `remat_policy`.
            back_end: of `prefix_attention`.
            scan: layers in a loop; false: unrolled, slower to compile.

        Returns:
            Normed hidden states of the continuations, `[B, M, R, D]`.
        """
        positions = continuation_positions(prefix.mask, input_mask, prefix.end)
        rope_y, own_mask = self.rope(positions, y.dtype), causal(input_mask)
        chips = axis_size("context")
        if zigzag := chips > 1:
            prefix = prefix.zigzag(chips)
        mask = prefix.mask
        x = constrain(prefix.x, ROWS, "context", None)
        positions = prefix.token_positions()
        positions = constrain(positions, ROWS, "context", *[None] * (positions.ndim - 2))
        rope_x = self.prefix_rope(positions, x.dtype)

        def body(block: Block, carry: Any, level: Any) -> tuple[Any, None]:
            x, y = carry
            x, k, v = block.prefix(x, rope_x, mask, back_end, zigzag)
            x = _add_level(x, prefix.deepstack, level)
            return (x, block.continuation(y, rope_y, Keys(k, v, mask), own_mask)), None

        levels = self._levels(prefix)
        (x, y), _ = self._scan(body, (x, y), levels, remat=remat, scan=scan)
        if target_at is not None:
            places = jnp.maximum(target_at, 0).reshape(len(x), -1, 1)
            if zigzag:
                order = zigzag_positions(x.shape[1], chips)
                places = jnp.asarray(np.argsort(order))[places]
            there = jnp.take_along_axis(x, places, axis=1).reshape(y.shape)
            y = jnp.where(target_at[..., None] >= 0, there, y)
        return self.norm(y)

    def sequence(self, prefix: PrefixStream, *, remat: str = "none") -> jax.Array:
        """Return normed hidden states `[B, P, D]` of one causal stream."""
        rope = self.prefix_rope(prefix.token_positions(), prefix.x.dtype)

        def body(block: Block, x: jax.Array, level: Any) -> tuple[jax.Array, None]:
            x = block.prefix(x, rope, prefix.mask)[0]
            return _add_level(x, prefix.deepstack, level), None

        return self.norm(self._scan(body, prefix.x, self._levels(prefix), remat=remat)[0])

    def prefill(self, prefix: PrefixStream) -> Cache:
        """Return keys and values `[L, B, P, K, C]` of a prefix."""
        rope = self.prefix_rope(prefix.token_positions(), prefix.x.dtype)

        def body(block: Block, x: jax.Array, level: Any) -> tuple[jax.Array, Cache]:
            x, k, v = block.prefix(x, rope, prefix.mask)
            return _add_level(x, prefix.deepstack, level), (k, v)

        return self._scan(body, prefix.x, self._levels(prefix))[1]

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


def causal(mask: jax.Array) -> jax.Array:
    """Return a causal mask bool `[..., R, R]` over the real tokens, bool `[..., R]`."""
    R = mask.shape[-1]
    return jnp.tril(jnp.ones((R, R), bool)) & mask[..., None, :]


def _add_level(x: jax.Array, deepstack: jax.Array | None, level: jax.Array) -> jax.Array:
    """Add a layer's features of `PrefixStream.deepstack` to the stream after it, `[B, P, D]`.

    All layers run the same program: one loop over them reads the stacked weights in place, two
    would copy them.
    """
    if deepstack is None:
        return x
    last = deepstack.shape[1] - 1
    added = jax.lax.dynamic_index_in_dim(deepstack, jnp.minimum(level, last), 1, keepdims=False)
    return x + jnp.where(level <= last, added.astype(x.dtype), 0)
