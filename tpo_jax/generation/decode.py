"""Prefill and cached decoding: two jitted pure functions.

`prefill` encodes the video and prefix of a row once, for all `M` questions of it; `decode` adds
tokens until every continuation has stopped. Questions differ in length and are padded on the right;
positions count real tokens only, so padding changes nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpo_jax import families
from tpo_jax.generation.sampling import Sampling, choose
from tpo_jax.models import vlm
from tpo_jax.models.batch import Array, Batch
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.decoder import causal
from tpo_jax.models.rotary import continuation_positions
from tpo_jax.parallel.programs import LayerwiseProgram


class Prefix(NamedTuple):
    """Keys and values of a row's prefix, which decoding reads and never changes."""

    keys_values: tuple[jax.Array, jax.Array]  # [L, B, P, K, C] each
    mask: jax.Array  # bool [B, P]


class State(NamedTuple):
    """Decoding in progress; `T` is the cache length, a question and its answer."""

    cache: tuple[jax.Array, jax.Array]  # [L, B, M, T, K, C] each
    visible: jax.Array  # bool [B, M, T], slots that hold a real token
    slot: jax.Array  # int32 scalar, where the next token goes
    position: jax.Array  # int32 [B, M], position of the last token chosen
    tokens: jax.Array  # int32 [B, M, new tokens], zero after the end
    counts: jax.Array  # int32 [B, M], tokens of the answer, the stop token not counted
    last: jax.Array  # int32 [B, M], chosen but not yet in the cache
    step: jax.Array  # int32 scalar, tokens chosen
    finished: jax.Array  # bool [B, M]
    seen: jax.Array  # bool [B, M, W], ids generated


class Limits(NamedTuple):
    """Where answers end, and which ids they may contain."""

    new_tokens: jax.Array  # int32 [B, M], the most tokens of an answer
    stop_ids: jax.Array  # int32 [n]
    vocabulary: jax.Array  # int32 scalar, ids from it on are never chosen


def _logits(model: vlm.VideoLanguageModel, hidden: jax.Array) -> jax.Array:
    head = model.decoder.head_kernel
    return jnp.einsum("...d,dw->...w", hidden, head, preferred_element_type=jnp.float32)


def _take(
    state: State, logits: jax.Array, seeds: Array, sampling: Sampling, limits: Limits
) -> State:
    """Choose the token of step `state.step` and record it."""
    M, W = logits.shape[1:]

    def key(seed: jax.Array, m: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), m), state.step)

    keys = jax.vmap(lambda seed: jax.vmap(lambda m: key(seed, m))(jnp.arange(M)))(seeds)
    token = choose(logits, state.seen, keys, sampling, limits.vocabulary)
    stopped = (token[..., None] == limits.stop_ids).any(-1)
    written = ~state.finished & ~stopped
    counts = state.counts + written
    return state._replace(
        tokens=state.tokens.at[:, :, state.step].set(jnp.where(written, token, 0)),
        counts=counts,
        last=token,
        step=state.step + 1,
        finished=state.finished | stopped | (counts >= limits.new_tokens),
        seen=state.seen | (token[..., None] == jnp.arange(W)),
    )


@functools.partial(LayerwiseProgram, static_argnames=("config", "new_tokens"))
def prefill(
    config: ModelConfig,
    params: dict,
    batch: Batch,
    sampling: Sampling,
    limits: Limits,
    *,
    new_tokens: int,
) -> tuple[Prefix, State]:
    """Encode each prefix once, read the questions and choose the first token of each answer.

    Args:
        params: in the compute dtype.
        batch: prompts, `M = Q * A`, with `seeds`. A continuation without a real token counts as
            finished from the start.
        new_tokens: cache length of an answer.

    Returns:
        The arguments of the first `decode`.

    Raises:
        ValueError: a batch without seeds.
    """
    if batch.seeds is None:
        raise ValueError("prefill needs Batch.seeds")
    model = families.bind(config, params)
    decoder = model.decoder
    B, Q, A, R = batch.input_mask.shape
    M = Q * A
    prefix_mask, input_mask = batch.prefix_mask, batch.input_mask.reshape(B, M, R)
    stream = model.prefix(batch)
    prefix = Prefix(decoder.prefill(stream), prefix_mask)

    y = decoder.embed(batch.input_ids.reshape(B, M, R))
    heads = (config.decoder.kv_heads, config.decoder.head_dim)
    empty = jnp.zeros((config.decoder.layers, B, M, R + new_tokens, *heads), y.dtype)
    positions = continuation_positions(prefix_mask, input_mask, stream.end)
    own_mask = jnp.pad(causal(input_mask), [(0, 0)] * 3 + [(0, new_tokens)])
    hidden, cache = decoder.extend(
        y, positions, prefix.keys_values, prefix_mask, (empty, empty), 0, own_mask
    )
    end = jnp.maximum(input_mask.sum(-1) - 1, 0)[..., None]
    last = jnp.take_along_axis(hidden, end[..., None], axis=2)[:, :, 0]
    state = State(
        cache=cache,
        visible=jnp.pad(input_mask, [(0, 0)] * 2 + [(0, new_tokens)]),
        slot=jnp.int32(R),
        position=jnp.take_along_axis(positions, end, axis=2)[..., 0] + 1,
        tokens=jnp.zeros((B, M, new_tokens), jnp.int32),
        counts=jnp.zeros((B, M), jnp.int32),
        last=jnp.zeros((B, M), jnp.int32),
        step=jnp.int32(0),
        finished=~input_mask.any(-1),
        seen=jnp.zeros((B, M, config.decoder.vocab_size), bool),
    )
    return prefix, _take(state, _logits(model, last), batch.seeds, sampling, limits)


def advance(
    config: ModelConfig, params: dict, prefix: Prefix, state: State
) -> tuple[jax.Array, State]:
    """Run the model on the last token of every continuation.

    Returns:
        float32 logits `[B, M, W]` of the next token, and the state with the last one in its cache.
    """
    model = families.bind(config, params)
    visible = state.visible | (jnp.arange(state.visible.shape[-1]) == state.slot)
    hidden, cache = model.decoder.extend(
        model.decoder.embed(state.last[..., None]),
        state.position[..., None],
        prefix.keys_values,
        prefix.mask,
        state.cache,
        state.slot,
        visible[:, :, None],
    )
    state = state._replace(
        cache=cache, visible=visible, slot=state.slot + 1, position=state.position + 1
    )
    return _logits(model, hidden[:, :, 0]), state


@functools.partial(LayerwiseProgram, static_argnames="config", donate_argnames="state")
def decode(
    config: ModelConfig,
    params: dict,
    prefix: Prefix,
    state: State,
    seeds: Array,
    sampling: Sampling,
    limits: Limits,
    steps: int,
) -> State:
    """Add at most `steps` tokens to every continuation; stop early when all have finished.

    Args:
        params: in the compute dtype.
        prefix: from `prefill`.
        state: from `prefill` or the last `decode`; donated.
        seeds: uint32 `[B]`, `Batch.seeds`.
        steps: traced, so any number runs the same program.
    """
    end = state.step + steps

    def more(state: State) -> jax.Array:
        return (state.step < end) & ~state.finished.all()

    def body(state: State) -> State:
        logits, state = advance(config, params, prefix, state)
        return _take(state, logits, seeds, sampling, limits)

    return jax.lax.while_loop(more, body, state)
