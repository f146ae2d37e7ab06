"""The objective against formulas written out by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.objectives.pairs import random_pairs
from tpo_jax.errors import InputError
from tpo_jax.objectives.losses import LOSSES, WITHOUT_REFERENCE, Pairs, sigmoid
from tpo_jax.objectives.preference import (
    Objective,
    denominators,
    mean_log_ratios,
    parse,
    tpo_loss,
)


def log_sigmoid(x):
    return -np.logaddexp(0, -np.float64(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    st.lists(st.floats(-300, 0, width=32), min_size=4, max_size=4),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.5),
)
@example([-39.0, -34.0, -31.0, -15.787333488464355], 1.0, 0.0)
def test_dpo_is_the_formula(dtype, values, beta, smoothing):
    """Up to the rounding of log-ratios, whose error in the loss is relative."""
    pc, pr, rc, rr = map(np.float64, values)
    h = beta * ((pc - pr) - (rc - rr))
    expected = -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)
    with jax.enable_x64(True):
        pairs = (np.array(x, dtype) for x in ([pc, pr], [rc, rr], [1, 1]))
        found = sigmoid(Pairs(*map(jnp.asarray, pairs)), beta=beta, label_smoothing=smoothing)
        assert found.dtype == dtype
        found = np.asarray(found)
    rtol = 8 * np.finfo(dtype).eps * (1 + beta * np.abs(values).max())
    # Below the smallest normal number XLA gives 0.
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=np.finfo(dtype).tiny)


def make(seed=0, B=3, Q=2, R=5):
    rng = np.random.default_rng(seed)
    mask = np.arange(R) < rng.integers(1, R + 1, (B, Q, 2, 1))
    mask[-1, -1] = False
    logps = np.where(mask, -rng.exponential(2, mask.shape), 0).astype(np.float32)
    reference = rng.normal(-8, 2, (B, Q, 2)).astype(np.float32)
    return jnp.array(logps), jnp.array(mask), jnp.array(reference)


def test_loss_is_ln2_where_the_policy_is_the_reference():
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


def shares(objective, data, parts):
    """Sum of the loss and metrics over strided micro-batches, as the step adds them up."""
    totals = denominators(jnp.asarray(data["target_mask"]))
    micro = [{name: values[i::parts] for name, values in data.items()} for i in range(parts)]
    if objective.uses_mean_log_ratios and parts > 1:
        totals["mean_log_ratios"] = sum(
            mean_log_ratios(m["token_logps"], m["target_mask"], m["reference"], totals)
            for m in micro
        )
    found = [tpo_loss(**m, objective=objective, totals=totals) for m in micro]
    return jax.tree.map(lambda *x: sum(map(np.float64, x)), *found)


@pytest.mark.parametrize("loss", [*LOSSES, "0.7*kto_pair+rrpo+0.1*orpo"])
def test_micro_batches_add_up(loss):
    data = random_pairs()
    objective = Objective(0.4, 0.5, 0.8, loss=loss, token_kl=0.3)
    whole = shares(objective, data, 1)
    assert np.isfinite(whole[0])
    for parts in (2, 4):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            whole,
            shares(objective, data, parts),
        )


@pytest.mark.parametrize("loss", [*LOSSES, "sigmoid+orpo"])
def test_padding_and_absent_pairs_do_not_count(loss):
    data = random_pairs()
    objective = Objective(0.4, 0.5, 0.8, loss=loss, token_kl=0.3)
    padded = {
        name: np.pad(
            values,
            [(0, 2)] + [(0, 0)] * (values.ndim - 1)
            if name == "reference"
            else [(0, 2)] + [(0, 0)] * (values.ndim - 2) + [(0, 3)],
        )
        for name, values in data.items()
    }
    padded["reference"][-2:] = 7.0  # whatever an absent pair's entry holds
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        shares(objective, data, 1),
        shares(objective, padded, 1),
    )


def gradient(objective, data, logps):
    mask = jnp.asarray(data["target_mask"])

    def loss(logps):
        return tpo_loss(
            logps, mask, data["reference"], objective, denominators(mask), data["phrase_mask"]
        )[0]

    return np.asarray(jax.grad(loss)(jnp.asarray(logps)))


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logps_have_a_loss_and_a_gradient(loss):
    """Certain answers, impossible answers and absent pairs."""
    data = random_pairs()
    for factor in (0.0, 1e-9, 300.0):
        found = gradient(Objective(alpha=0.0, loss=loss), data, data["token_logps"] * factor)
        assert np.isfinite(found).all()
        assert (found[-1, -1] == 0).all()


@pytest.mark.parametrize("loss", [*WITHOUT_REFERENCE, "simpo+0.1*orpo"])
def test_losses_without_reference_need_none(loss):
    data, objective = random_pairs(), Objective(alpha=0.0, loss=loss)
    assert objective.uses_pairs and not objective.uses_reference
    given = shares(objective, data, 1)
    none = tpo_loss(
        data["token_logps"],
        data["target_mask"],
        None,
        objective,
        denominators(data["target_mask"]),
    )
    np.testing.assert_allclose(given[0], none[0], rtol=1e-6)
    assert none[1].keys() == given[1].keys()
    assert not any(name.startswith(("ref_logps", "kl/")) for name in none[1])


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "rrpo", "kto_pair"])
def test_reference_free_is_a_reference_of_zero(loss):
    data = random_pairs()
    free = Objective(alpha=0.0, loss=loss, reference_free=True)
    assert not free.uses_reference
    expected = shares(
        Objective(alpha=0.0, loss=loss), data | {"reference": 0 * data["reference"]}, 1
    )
    found = tpo_loss(
        data["token_logps"],
        data["target_mask"],
        None,
        free,
        denominators(data["target_mask"]),
        data["phrase_mask"],
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(
        found[1]["rewards/margins"], expected[1]["rewards/margins"], rtol=1e-6
    )


def test_phrases_of_the_whole_answers_are_dpo():
    data = random_pairs()
    data["phrase_mask"] = data["target_mask"]
    data["reference"][..., 2:] = data["reference"][..., :2]
    a, b = (shares(Objective(0.2, 0.5, loss=name), data, 1)[0] for name in ("rrpo", "sigmoid"))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_phrase_rewards_push_only_the_tokens_that_differ():
    data = random_pairs()
    found = gradient(Objective(alpha=0.0, loss="rrpo"), data, data["token_logps"])
    present = data["target_mask"].any(-1).all(-1)
    assert ((found != 0) == (data["phrase_mask"] & present[..., None, None])).all()


def test_token_kl_sums_over_tokens_and_averages_over_answers():
    data = random_pairs()
    for weight in (0.01, 0.5):
        with_kl, without = (
            shares(Objective(0.1, 0.0, loss="rrpo", token_kl=w), data, 1)[0] for w in (weight, 0.0)
        )
        present = data["target_mask"].any(-1).all(-1)
        expected = data["token_kl"].astype(np.float64).sum(-1)[present].mean()
        np.testing.assert_allclose(with_kl - without, weight * expected, rtol=1e-4)


def test_no_gradient_flows_through_the_kto_baseline():
    data = random_pairs()
    mask, objective = jnp.asarray(data["target_mask"]), Objective(0.3, 0.0, loss="kto_pair")
    log_ratios = mean_log_ratios(data["token_logps"], mask, data["reference"], denominators(mask))
    fixed = denominators(mask) | {"mean_log_ratios": log_ratios}
    by_value = jax.grad(lambda x: tpo_loss(x, mask, data["reference"], objective, fixed)[0])(
        jnp.asarray(data["token_logps"])
    )
    np.testing.assert_allclose(
        by_value, gradient(objective, data, data["token_logps"]), rtol=1e-6, atol=1e-9
    )


def test_sums_of_losses_are_parsed():
    assert parse("ipo") == {"ipo": 1.0}
    assert parse("0.8*sigmoid + 2e-1*apo_zero+orpo") == {
        "sigmoid": 0.8,
        "apo_zero": 0.2,
        "orpo": 1.0,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "objective.beta=0.0 must be above 0"),
        ({"beta": float("nan")}, "objective.beta=nan"),
        ({"alpha": -0.5}, "objective.alpha=-0.5 must not be negative"),
        ({"dpo_weight": float("inf")}, "objective.dpo_weight=inf"),
        ({"margin": -1.0}, "objective.margin=-1.0"),
        ({"token_kl": -0.1}, "objective.token_kl=-0.1"),
        ({"label_smoothing": 0.5}, "objective.label_smoothing=0.5 must be at least 0 and below"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "no effect with objective.loss='ipo'"),
        ({"alpha": 0.0, "dpo_weight": 0.0}, "nothing to train"),
        ({"reference_free": True, "token_kl": 0.1}, "objective.token_kl needs a reference"),
        ({"loss": "dpo"}, "no loss 'dpo'; there are sigmoid, robust"),
        ({"loss": ""}, "no loss ''"),
        ({"loss": "ipo+"}, "no loss ''"),
        ({"loss": "-1*ipo"}, "the weight of ipo must be a number above 0"),
        ({"loss": "x*ipo"}, "the weight of ipo must be a number above 0"),
        ({"loss": "ipo+2*ipo"}, "names ipo twice"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(InputError) as error:
        Objective(**fields)
    assert message in str(error.value)


@given(st.text(max_size=20))
def test_any_text_is_a_sum_or_an_error(text):
    try:
        terms = parse(text)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert terms.keys() <= LOSSES.keys()


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
