"""From logits to the next token: repetition penalty, temperature, top-k and top-p, in that order.

The order and meaning of the settings are those of `transformers`' `LogitsProcessor` classes.
Settings are traced, not static, so one compilation serves them all.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpo_jax.errors import InputError


class Sampling(NamedTuple):
    """How the next token is chosen."""

    temperature: float = 0.0  # 0: greedy; top_k and top_p then have no effect
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # on ids already generated; ids of the prompt do not count

    def check(self) -> None:
        """Raise `InputError` for a setting out of range."""
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature={self.temperature} must be 0 (greedy) or more, finite")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(
                f"repetition_penalty={self.repetition_penalty} must be above 0, and finite"
            )


def filter_logits(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Set logits outside the `top_k` or outside the nucleus of mass `top_p` to minus infinity.

    The nucleus is taken after `top_k`: the most probable tokens up to and including the one at
    which the cumulative probability reaches `top_p`, at least one. Ties with the last token are
    kept.

    Args:
        logits: float32 `[..., W]`.
        top_k: int scalar, 0 for all.
        top_p: float scalar in (0, 1].

    Returns:
        float32 `[..., W]`.
    """
    W = logits.shape[-1]
    ranked = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(top_k > 0, jnp.minimum(top_k, W), W)
    ranked = jnp.where(jnp.arange(W) < k, ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # top_p=1 keeps everything, however the sum is rounded.
    kept = jnp.isfinite(ranked) & ((before < top_p) | (top_p >= 1))
    last = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= last, logits, -jnp.inf)


def choose(
    logits: jax.Array, seen: jax.Array, keys: jax.Array, sampling: Sampling, vocabulary: jax.Array
) -> jax.Array:
    """Choose the next token of every continuation.

    Args:
        logits: float32 `[B, M, W]`.
        seen: bool `[B, M, W]`, ids generated so far.
        keys: random keys `[B, M]`; a draw depends on its own key only, not on the batch.
        vocabulary: int scalar, the number of ids with a token; no higher id is chosen.

    Returns:
        int32 `[B, M]`.
    """
    logits = jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
    penalty = sampling.repetition_penalty
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalised, logits)

    def sample() -> jax.Array:
        scaled = logits / sampling.temperature
        filtered = jax.lax.cond(
            (sampling.top_k > 0) | (sampling.top_p < 1),
            lambda: filter_logits(scaled, sampling.top_k, sampling.top_p),
            lambda: scaled,
        )
        return jax.vmap(jax.vmap(jax.random.categorical))(keys, filtered)

    token = jax.lax.cond(sampling.temperature > 0, sample, lambda: jnp.argmax(logits, axis=-1))
    return token.astype(jnp.int32)
