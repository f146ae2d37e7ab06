"""The objective against formulas written out by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.objectives.preference import Objective, denominators, dpo, tpo_loss


def log_sigmoid(x):
    return -np.logaddexp(0, -np.float64(x))


@given(
    st.lists(st.floats(-300, 0, width=32), min_size=4, max_size=4),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.5),
)
def test_dpo_is_the_formula(values, beta, smoothing):
    pc, pr, rc, rr = values
    h = beta * ((pc - pr) - (rc - rr))
    expected = -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)
    found = dpo(jnp.array([pc, pr]), jnp.array([rc, rr]), beta, smoothing)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-5)


def make(seed=0, B=3, Q=2, R=5):
    rng = np.random.default_rng(seed)
    mask = np.arange(R) < rng.integers(1, R + 1, (B, Q, 2, 1))
    mask[-1, -1] = False
    logps = np.where(mask, -rng.exponential(2, mask.shape), 0).astype(np.float32)
    reference = rng.normal(-8, 2, (B, Q, 2)).astype(np.float32)
    return jnp.array(logps), jnp.array(mask), jnp.array(reference)


def test_loss_equals_ln2_plus_nothing_where_policy_is_reference():
    logps, mask, _ = make()
    objective = Objective(beta=0.3, alpha=0.0)
    loss, metrics = tpo_loss(logps, mask, logps.sum(-1), objective, denominators(mask))
    np.testing.assert_allclose(loss, np.log(2), atol=1e-6)
    assert metrics["rewards/margins"] == 0 and metrics["rewards/accuracies"] == 0


def test_means_run_over_present_pairs_and_chosen_tokens():
    logps, mask, reference = make()
    loss, metrics = tpo_loss(logps, mask, reference, Objective(0.2, 0.7), denominators(mask))
    lp, m, r = (np.float64(x).reshape(-1, *x.shape[2:]) for x in (logps, mask, reference))
    policy, present = lp.sum(-1), m.any((1, 2))
    margins = 0.2 * ((policy - r)[:, 0] - (policy - r)[:, 1])
    sft = -lp[:, 0].sum() / m[:, 0].sum()
    expected = -log_sigmoid(margins)[present].mean() + 0.7 * sft
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/margins"], margins[present].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/accuracies"], (margins > 0)[present].mean())
    np.testing.assert_allclose(metrics["losses/total"], loss)


def test_micro_batches_add_up():
    logps, mask, reference = make(B=4)
    totals = denominators(mask)
    objective = Objective(0.1, 0.5)
    whole = tpo_loss(logps, mask, reference, objective, totals)
    halves = [
        tpo_loss(logps[i::2], mask[i::2], reference[i::2], objective, totals) for i in range(2)
    ]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole, added)


def test_supervised_alone_reads_only_chosen():
    logps, mask, _ = make()
    objective = Objective(alpha=1.0, dpo_weight=0.0)
    both = tpo_loss(logps, mask, None, objective, denominators(mask))[0]
    chosen = tpo_loss(
        logps[:, :, :1], mask[:, :, :1], None, objective, denominators(mask[:, :, :1])
    )
    assert both == chosen[0]
    assert "losses/dpo" not in chosen[1]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_gradient_prefers_chosen(alpha):
    logps, mask, reference = make()
    gradient = jax.grad(
        lambda x: tpo_loss(x, mask, reference, Objective(0.3, alpha), denominators(mask))[0]
    )(logps)
    present = np.asarray(mask)
    assert (np.asarray(gradient)[:, :, 0][present[:, :, 0]] < 0).all()
    assert (np.asarray(gradient)[:, :, 1][present[:, :, 1]] > 0).all()
