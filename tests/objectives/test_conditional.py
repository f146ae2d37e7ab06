"""Pairs of two videos beside pairs of two answers, against the papers' formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_jax.errors import InputError
from tpo_jax.objectives.conditional import VIDEO, join_rows, video_pairs
from tpo_jax.objectives.preference import Objective, denominators, metric_names, tpo_loss

# What a row holds, by the places that are answered: nothing, a chosen answer, a rejected one, both.
CHOSEN, REJECTED, BOTH, NOTHING = (1, 0), (0, 1), (1, 1), (0, 0)


def arguments(rows, seed=0, R=5):
    """Log-probabilities, mask and reference of rows that hold these, as a step has them."""
    rng = np.random.default_rng(seed)
    answered = np.array(rows, bool).reshape(-1, 1, 2, 1)
    mask = answered & (np.arange(R) < rng.integers(1, R + 1, (len(rows), 1, 2, 1)))
    logps = np.where(mask, -rng.exponential(1.0, mask.shape), 0).astype(np.float32)
    reference = rng.normal(-3, 1, (len(rows), 1, 2)).astype(np.float32)
    reference[1::2] = np.where(answered[1::2, :, :, 0].all(-1, keepdims=True), reference[1::2], 0)
    for first in range(0, len(rows), 2):  # the rows of a pair have the same
        if rows[first] == CHOSEN:
            reference[first + 1] = reference[first]
    return jnp.asarray(logps), jnp.asarray(mask), jnp.asarray(reference)


def loss_of(objective, logps, mask, reference):
    totals = denominators(mask, objective.uses_videos)
    return tpo_loss(logps, mask, reference, objective, totals)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


MIXED = [CHOSEN, REJECTED, BOTH, BOTH, CHOSEN, REJECTED, NOTHING, BOTH]


@pytest.mark.parametrize("reference_free", [False, True])
@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "kto_pair"])
def test_the_papers_terms_are_added_to_those_of_two_answers(loss, reference_free):
    logps, mask, reference = arguments(MIXED)
    plain = Objective(0.3, 0.7, loss=loss, reference_free=reference_free)
    both = Objective(
        *(0.3, 0.7),
        loss=loss,
        reference_free=reference_free,
        video_weight=0.8,
        video_anchor=0.2,
    )
    found, metrics = loss_of(both, logps, mask, reference)
    answers = np.array([2, 3, 7])
    alone, of_answers = loss_of(plain, logps[answers], mask[answers], reference[answers])

    sums = np.asarray(logps.sum(-1))[:, 0]
    known = np.zeros_like(sums) if reference_free else np.asarray(reference)[:, 0]
    right = 0.3 * (sums[[0, 4], 0] - known[[0, 4], 0])
    wrong = 0.3 * (sums[[1, 5], 1] - known[[1, 5], 1])
    conditional, anchor = -log_sigmoid(right - wrong).mean(), -log_sigmoid(right).mean()
    np.testing.assert_allclose(found, alone + 0.8 * conditional + 0.2 * anchor, rtol=1e-5)
    expected = of_answers | {
        "losses/total": found,
        "video/losses/dpo": conditional,
        "video/losses/anchor": anchor,
        "video/rewards/chosen": right.mean(),
        "video/rewards/rejected": wrong.mean(),
        "video/rewards/margins": (right - wrong).mean(),
        "video/rewards/accuracies": (right > wrong).mean(),
        "video/logps/chosen": sums[[0, 4], 0].mean(),
        "video/logps/rejected": sums[[1, 5], 1].mean(),
    }
    # A reference that the answers' loss does not read is there all the same.
    known_only = {name for name in metrics if name.startswith(("ref_logps/", "kl/"))}
    assert metrics.keys() - known_only == expected.keys() - known_only
    assert sorted(metrics) == metric_names(both)
    for name in expected.keys() - known_only:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)


@jax.jit
def gradient_of(logps, mask, reference):
    objective = Objective(0.3, 0.5, video_weight=1.0, video_anchor=1.0)
    return jax.grad(lambda x: loss_of(objective, x, mask, reference)[0])(logps)


rows = st.sampled_from([(CHOSEN, REJECTED), (BOTH, BOTH), (NOTHING, NOTHING), (BOTH, NOTHING)])
halves = st.sampled_from([(CHOSEN, NOTHING), (NOTHING, REJECTED), (BOTH, REJECTED)])


@settings(max_examples=30, deadline=None)
@given(st.lists(rows | halves, min_size=4, max_size=4), st.integers(0, 99))
def test_only_whole_pairs_count_and_every_gradient_is_finite(neighbours, seed):
    """Rows of a pair of which one is missing weigh nothing."""
    flat = [row for pair in neighbours for row in pair]
    logps, mask, reference = arguments(flat, seed)
    gradient = gradient_of(logps, mask, reference)
    assert np.isfinite(gradient).all()
    whole = [pair == (CHOSEN, REJECTED) for pair in neighbours]
    assert np.asarray(video_pairs(mask))[::2, 0].tolist() == whole
    assert not np.asarray(video_pairs(mask))[1::2].any()
    moved = np.abs(np.asarray(gradient)).sum((1, 2, 3)) > 0
    counts = [row == BOTH or whole[i // 2] for i, row in enumerate(flat)]
    assert moved.tolist() == counts
    joined = np.asarray(join_rows(logps.sum(-1), mask))
    for i, pair in enumerate(neighbours):
        if pair == (CHOSEN, REJECTED):
            sums = [float(logps[2 * i, 0, 0].sum()), float(logps[2 * i + 1, 0, 1].sum())]
            np.testing.assert_allclose(joined[2 * i : 2 * i + 2, 0], [sums, sums], rtol=1e-6)


def test_supervised_training_has_the_preference_between_videos_beside_it():
    logps, mask, reference = arguments(MIXED)
    objective = Objective(0.3, 1.0, 0.0, video_weight=1.0)
    assert objective.answers == 2 and objective.uses_reference
    found, metrics = loss_of(objective, logps, mask, reference)
    total = metrics["losses/sft"] + metrics["video/losses/dpo"]
    np.testing.assert_allclose(found, total, rtol=1e-6)
    assert not [name for name in metrics if name.startswith("rewards")]
    assert VIDEO + "rewards/margins" in metrics
    anchor = Objective(0.3, 1.0, 0.0, video_anchor=0.4)
    found, metrics = loss_of(anchor, logps, mask, reference)
    total = metrics["losses/sft"] + 0.4 * metrics["video/losses/anchor"]
    np.testing.assert_allclose(found, total, rtol=1e-6)
    with pytest.raises(ValueError, match="no reference is given"):
        loss_of(objective, logps, mask, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"video_weight": -1.0}, "objective.video_weight=-1.0 must not be negative"),
        ({"video_weight": float("nan")}, "objective.video_weight=nan must not be negative"),
        (
            {"video_weight": 1.0, "video_anchor": -0.1},
            "objective.video_anchor=-0.1 must not be neg",
        ),
    ],
)
def test_weights_out_of_range_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        Objective(**fields)
