"""Pairs of two videos in the step: equal to two forward passes and the papers' formulas."""

import dataclasses
import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.batches import SMALL, random_batch
from tests.objectives.test_conditional import BOTH, CHOSEN, NOTHING, REJECTED, arguments
from tests.training.test_held_out import Batches
from tests.training.test_step import (
    EXACT,
    PARTS,
    SGD,
    assert_same,
    gradient_of_a_step,
    other_weights,
    params,
    prepared,
)
from tpo_jax import families
from tpo_jax.models import classic
from tpo_jax.models.lora import Lora
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss
from tpo_jax.training.held_out import HeldOut, make_evaluator
from tpo_jax.training.state import TrainState, new_state, split_params
from tpo_jax.training.step import make_scorer, make_step

BETA, ALPHA, WEIGHT, ANCHOR = 0.3, 0.5, 0.8, 0.4
OBJECTIVE = Objective(BETA, ALPHA, video_weight=WEIGHT, video_anchor=ANCHOR)
VIDEO_PAIRS = (0, 2)  # first rows; those behind them and the last rows hold pairs of two answers
ANSWERS = slice(4, 8)
APART = (8, 1, 1, 1)  # a mesh with one row a device: both rows of every pair are apart


@functools.cache
def mixed_batch():
    """Two pairs of two videos, three pairs of two answers and an empty row."""
    batch = random_batch(B=8, absent=True)
    for first in VIDEO_PAIRS:
        for name in ("input_ids", "input_mask", "target_ids", "target_mask"):
            values = getattr(batch, name)
            values[first + 1, :, 1] = values[first, :, 0]  # the same answer
            values[first, :, 1] = values[first + 1, :, 0] = 0
        batch.pair_index[first + 1] = batch.pair_index[first]
        batch.reference_logps[first + 1] = batch.reference_logps[first]
    return batch


@functools.cache
def by_formula():
    """Loss and gradient in the layout of one answer a row, where every answer on every video has a
    forward pass of its own.
    """
    batch = mixed_batch()
    known = batch.reference_logps[:, 0]
    labels = batch.target_mask[ANSWERS][:3, 0, 0].sum()
    trainable, frozen = split_params(params(), ("tower",))

    def softplus(x):
        return jnp.log1p(jnp.exp(x))

    def loss(trainable):
        model = families.bind(SMALL, trainable | frozen)
        ratios = classic.token_logps(model, batch).sum(-1)[:, 0] - known
        total = 0.0
        for first in VIDEO_PAIRS:
            right, wrong = ratios[first, 0], ratios[first + 1, 1]
            total += WEIGHT * softplus(-BETA * (right - wrong)) / len(VIDEO_PAIRS)
            total += ANCHOR * softplus(-BETA * right) / len(VIDEO_PAIRS)
        answers = ratios[ANSWERS][:3]
        total += softplus(-BETA * (answers[:, 0] - answers[:, 1])).mean()
        return total - ALPHA * (answers + known[ANSWERS][:3])[:, 0].sum() / labels

    return jax.jit(jax.value_and_grad(loss))(trainable)


@functools.cache
def updated(compute, sizes=(1, 1, 1, 1)):
    """The gradient and the metrics of a step."""
    return gradient_of_a_step(OBJECTIVE, compute, mixed_batch(), sizes)


@pytest.mark.parametrize(
    ("compute", "sizes"),
    [
        (EXACT, (1, 1, 1, 1)),
        (EXACT, APART),
        (PARTS, (2, 1, 1, 2)),
    ],
)
def test_the_step_equals_separate_forward_passes(compute, sizes):
    gradient, metrics = updated(compute, sizes)
    loss, expected = by_formula()
    np.testing.assert_allclose(metrics["losses/total"], loss, rtol=1e-5)
    assert_same(gradient, jax.device_get(expected), 2e-5)
    assert (metrics["pairs"], metrics["video/pairs"], metrics["skipped"]) == (3, 2, 0)
    for name, value in updated(EXACT)[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-5, err_msg=name)


def test_rows_of_a_pair_meet_as_two_numbers_each():
    """What the pairing adds to the traffic of a step is far below one position's hidden state of
    one row.
    """

    def traffic(objective):
        mesh, step, *given = prepared(objective, EXACT, APART, SGD, mixed_batch())
        with jax.set_mesh(mesh):
            return exchanged(step.lower(*given, None).compile().as_text())

    plain = Objective(BETA, ALPHA)
    assert traffic(OBJECTIVE) - traffic(plain) < SMALL.decoder.width * 4


def exchanged(text):
    """Return the bytes that collectives of a compiled program give one device."""
    size = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}
    kinds = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
    total = 0
    for shapes in re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text):
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            total += size[dtype] * math.prod(int(d) for d in dims.split(",") if d)
    return total


def test_the_scorer_gives_both_rows_the_sums_of_both():
    """What a cache of the reference holds is what the step computes."""
    batch = jax.tree.map(jnp.asarray, mixed_batch())
    scores = np.asarray(jax.jit(make_scorer(SMALL, EXACT, videos=True))(params(), batch))
    alone = np.asarray(jax.jit(make_scorer(SMALL, EXACT))(params(), batch))
    for first in VIDEO_PAIRS:
        expected = [alone[first, 0, 0], alone[first + 1, 0, 1]]
        np.testing.assert_array_equal(scores[first : first + 2, 0], [expected, expected])
    np.testing.assert_array_equal(scores[ANSWERS], alone[ANSWERS])
    _, metrics = updated(EXACT)
    policy = scores[list(VIDEO_PAIRS), 0].mean(0)
    found = [metrics["video/logps/chosen"], metrics["video/logps/rejected"]]
    np.testing.assert_allclose(found, policy, rtol=1e-5)


def test_a_live_reference_equals_the_cached_one():
    live = Objective(BETA, ALPHA, token_kl=1e-30, video_weight=WEIGHT, video_anchor=ANCHOR)
    other = other_weights() | split_params(params(), ("tower",))[1]
    known = jax.jit(make_scorer(SMALL, EXACT, videos=True))(other, mixed_batch())
    cached, without = (
        dataclasses.replace(mixed_batch(), reference_logps=logps)
        for logps in (np.asarray(known), None)
    )
    one, measured = gradient_of_a_step(live, EXACT, without, reference=other_weights())
    two, expected = gradient_of_a_step(OBJECTIVE, EXACT, cached)
    assert_same(one, two, 1e-6)
    for name in expected:
        np.testing.assert_allclose(measured[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("there", [True, False])
def test_held_out_pairs_of_either_kind_have_means_of_their_own(there):
    """Batches of any composition give what one batch of all of them gives."""
    kinds = [CHOSEN, REJECTED, BOTH, BOTH, CHOSEN, REJECTED, BOTH, NOTHING, CHOSEN, REJECTED]
    rows = kinds if there else [kind if kind == BOTH else NOTHING for kind in kinds]
    logps, mask, reference = arguments(rows)
    found = {"token_logps": logps, "target_mask": mask, "reference": reference}
    totals = denominators(mask, videos=True)
    loss = jax.jit(functools.partial(tpo_loss, objective=OBJECTIVE))
    expected = loss(totals=totals, **found)[1]
    forward = lambda params, frozen, batch, reference: batch  # noqa: E731
    batches = [{name: x[i : i + 2] for name, x in found.items()} for i in range(0, len(rows), 2)]
    held_out = HeldOut(
        Batches(batches),
        SimpleNamespace(put=lambda batch: batch),
        jax.jit(make_evaluator(forward, OBJECTIVE)),
        OBJECTIVE,
    )
    metrics = held_out.metrics(TrainState({}, {}, (), jnp.int32(0)))
    assert metrics.pop("pairs") == 3 and metrics.pop("video/pairs", 0) == (3 if there else 0)
    whole = {n: float(x) for n, x in expected.items() if there or not n.startswith("video/")}
    assert metrics == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_adapters_alone_learn_from_two_videos():
    lora, optimizer = Lora(rank=2), optax.sgd(0.3)
    objective = Objective(BETA, 0.0, 0.0, video_weight=1.0)
    state = new_state(params(), optimizer, ("tower", "projector"), lora, 0)
    step = jax.jit(make_step(SMALL, objective, EXACT, optimizer, lora))
    batch = jax.tree.map(jnp.asarray, mixed_batch())
    known = jax.jit(make_scorer(SMALL, EXACT, videos=True))(params(), batch)
    batch = batch.__class__(**{**vars(batch), "reference_logps": known})
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["video/losses/dpo"]))
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[0] > losses[1] > losses[2]
