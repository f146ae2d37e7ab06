"""Cached decoding computes what the whole sequence computes, whatever the batch around it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import QUESTIONS, of
from tpo_jax import families
from tpo_jax.data.collate import collate
from tpo_jax.generation.decode import Limits, advance, decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings, to_global

NEW = 16
GREEDY = Sampling()


def make_batch(config, frames, rows, P=96, R=48, M=3):
    """Pad rows of prompts to one shape, so that most tests run one program."""
    (B, F), sizes = frames.shape[:2], {"prefix": P, "questions": M, "response": R}
    shape = BatchShape(rows=B, answers=1, frames=F, frame_shape=config.frame_shape, **sizes)
    batch = collate(config, rows, list(frames), shape)
    return dataclasses.replace(batch, seeds=np.arange(B, dtype=np.uint32))


def limits(batch, vocabulary, new_tokens=NEW):
    shape = batch.input_ids.shape[:2]
    return Limits(np.full(shape, new_tokens, np.int32), np.array([-1], np.int32), vocabulary)


def generate(model, batch, sampling=GREEDY, vocabulary=300):
    config, params = model
    ends = limits(batch, vocabulary)
    prefix, state = prefill(config, params, batch, sampling, ends, new_tokens=NEW)
    state = decode(config, params, prefix, state, batch.seeds, sampling, ends, NEW - 1)
    return np.asarray(state.tokens)


@functools.partial(jax.jit, static_argnums=0)
def classic_logits(config, params, visual, ids, index, mask):
    """Logits `[T, W]` of one row without cache: the classic layout."""
    m = families.bind(config, params)
    x = m.embed_prefix(ids[None], visual, index[None])
    return m.decoder.sequence(PrefixStream(x, mask[None]))[0] @ params["decoder"]["head"]["kernel"]


def recomputed(model, visual, row, question, tokens):
    """Logits `[NEW, W]` that predict `tokens`, from the whole sequence at once."""
    own, prefix = row.input_mask[question, 0], row.prefix_mask
    ids = [row.prefix_ids[prefix], row.input_ids[question, 0, own], tokens[:-1]]
    ids = np.concatenate(ids)
    index = np.concatenate([row.visual_index[prefix], np.full(len(ids) - prefix.sum(), -1)])
    T = 160
    mask = np.arange(T) < len(ids)
    index = np.pad(index, (0, T - len(ids)), constant_values=-1)
    logits = classic_logits(*model, visual, np.pad(ids, (0, T - len(ids))), index, mask)
    return np.asarray(logits)[len(ids) - len(tokens) : len(ids)]


def test_cache_equals_the_whole_sequence(model, videos, prompt) -> None:
    config, params = model
    rows = [prompt(QUESTIONS), prompt(QUESTIONS[::-1])]
    batch = make_batch(model[0], videos[:2], rows)
    W = config.decoder.vocab_size
    tokens = generate(model, batch, vocabulary=W)
    prefix, state = prefill(config, params, batch, GREEDY, limits(batch, W), new_tokens=NEW)
    step = jax.jit(advance, static_argnums=0)
    cached = []
    for i in range(NEW - 1):
        logits, state = step(config, params, prefix, state._replace(last=tokens[:, :, i]))
        cached.append(logits)
    cached = np.stack(cached, axis=2)
    for b, row in enumerate(rows):
        visual = jax.jit(families.bind(config, params).encode_frames)(videos[b : b + 1])
        for q in range(len(QUESTIONS)):
            whole = recomputed(model, visual, row, q, tokens[b, q])
            np.testing.assert_array_equal(np.argmax(whole, -1), tokens[b, q])
            np.testing.assert_allclose(cached[b, q], whole[1:], atol=1e-4, rtol=0)
    assert len(np.unique(tokens)) > 3  # not one token over and over


@of("tiny_llava_video")
def test_many_questions_equal_one_at_a_time(model, videos, prompt) -> None:
    rows = [prompt(QUESTIONS)] + [prompt([question]) for question in QUESTIONS]
    together, first = generate(model, make_batch(model[0], videos[:1].repeat(2, 0), rows[:2]))
    second, third = generate(model, make_batch(model[0], videos[:1].repeat(2, 0), rows[2:]))
    np.testing.assert_array_equal(together, [first[0], second[0], third[0]])
    assert not first[1:].any()  # no question, no answer


@of("tiny_llava_video")
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 20, 0.9, 1.1)])
def test_padding_and_neighbours_change_nothing(model, videos, prompt, sampling) -> None:
    rows = [prompt(QUESTIONS), prompt(QUESTIONS[:1]), prompt(QUESTIONS[1:])]
    first = generate(model, make_batch(model[0], videos[[0, 1]], [rows[0], rows[1]]), sampling)
    second = generate(model, make_batch(model[0], videos[[0, 2]], [rows[0], rows[2]]), sampling)
    np.testing.assert_array_equal(first[0], second[0])
    alone = generate(model, make_batch(model[0], videos[:1], rows[:1], P=128, R=40), sampling)
    np.testing.assert_array_equal(first[0], alone[0])


@of("tiny_llava_video")
def test_draws_follow_the_seed(model, videos, prompt) -> None:
    batch = make_batch(model[0], videos[:2], [prompt([QUESTIONS[0]] * 2)] * 2)
    sampling = Sampling(temperature=1.0)
    first = generate(model, batch, sampling)
    np.testing.assert_array_equal(first, generate(model, batch, sampling))
    assert (first[0, 0] != first[0, 1]).any()  # the same question twice: two draws
    other = generate(model, dataclasses.replace(batch, seeds=np.array([7, 1], np.uint32)), sampling)
    assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(first[1], other[1])
    greedy = generate(model, batch)
    np.testing.assert_array_equal(greedy, generate(model, batch, Sampling(1.0, top_k=1)))


@of("tiny_llava_video")
def test_ids_without_a_token_are_never_chosen(model, videos, prompt) -> None:
    batch = make_batch(model[0], videos[:2], [prompt(QUESTIONS)] * 2)
    assert generate(model, batch, vocabulary=512).max() >= 40
    for sampling in (GREEDY, Sampling(temperature=2.0)):
        assert generate(model, batch, sampling, vocabulary=40).max() < 40


@of("tiny_llava_video")
def test_sharded_equals_one_device(model, videos, prompt) -> None:
    config, params = model
    rows = [prompt(QUESTIONS), prompt(QUESTIONS[::-1])]
    expected = generate(model, make_batch(model[0], videos[:2], rows))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2, "context": 1})
    sharded = jax.device_put(params, parameter_shardings(mesh, params))
    batch = to_global(make_batch(model[0], np.concatenate([videos[:2]] * 2), rows * 2), mesh)
    got = generate((config, sharded), batch)
    np.testing.assert_array_equal(got, np.concatenate([expected] * 2))
    ends = limits(batch, 300)
    _, state = prefill(config, sharded, batch, GREEDY, ends, new_tokens=NEW)
    assert state.cache[0].addressable_data(0).size * 8 == state.cache[0].size


def test_layers_in_bfloat16_are_never_all_in_float32() -> None:
    """A CPU multiplies them in float32, one layer of the eight at a time."""
    config = families.preset("tiny_longva")
    wide = dataclasses.replace(config.decoder, layers=8, width=256, mlp_width=1024, vocab_size=300)
    config = dataclasses.replace(config, decoder=wide)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), families.abstract_params(config)
    )
    sizes = {"prefix": 16, "questions": 1, "response": 8, "frames": 1}
    shape = BatchShape(rows=1, answers=1, frame_shape=config.frame_shape, **sizes)
    batch = dataclasses.replace(shape.abstract(), seeds=np.zeros(1, np.uint32))
    ends = Limits(np.zeros((1, 1), np.int32), np.array([-1], np.int32), 300)
    lowered = prefill.lower(config, params, batch, GREEDY, ends, new_tokens=2)
    layers = 4 * sum(x.size for x in jax.tree.leaves(params["decoder"]["layers"]))  # float32
    assert lowered.compile().memory_analysis().temp_size_in_bytes < layers / 4
