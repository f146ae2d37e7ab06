"""Metrics over held-out pairs equal the objective's over one batch of all of them."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpo_jax.objectives.losses import LOSSES
from tpo_jax.objectives.preference import Objective, denominators, metric_names, tpo_loss
from tpo_jax.training.held_out import HeldOut, make_evaluator
from tpo_jax.training.state import TrainState

PAIRS, ROWS, Q, R = 7, 2, 2, 5


class Batches(list):
    """Stands for a pipeline of finished batches; its iterator can be closed."""

    def __iter__(self):
        yield from super().__iter__()


def arguments(rng, pairs):
    """What the loss reads of pairs, `[pairs, 1, …]`, each with its own lengths."""
    lengths = rng.integers(1, R + 1, (pairs, 1, 2, 1))
    mask = np.arange(R) < lengths
    logps = np.where(mask, -rng.exponential(2, mask.shape), 0).astype(np.float32)
    phrases = mask & (rng.random(mask.shape) < 0.5)
    sums = [logps.sum(-1), np.where(phrases, logps, 0).sum(-1)]
    reference = np.concatenate(sums, -1) + rng.normal(0, 1, (pairs, 1, 4)).astype(np.float32)
    return {
        "token_logps": logps,
        "target_mask": mask,
        "reference": reference.astype(np.float32),
        "phrase_mask": phrases,
        "token_kl": np.where(mask[:, :, 0], 0.1, 0).astype(np.float32),
    }


def batches_of(found, skipped):
    """The same pairs in batches `[ROWS, Q, …]`; absent and skipped pairs have no labels."""
    count = len(found["target_mask"]) + len(skipped)
    places = [i for i in range(count) if i not in skipped]
    size = -(-count // (ROWS * Q)) * ROWS * Q
    padded = {}
    for name, values in found.items():
        padded[name] = np.full((size, *values.shape[2:]), 3, values.dtype)
        padded[name][places] = values[:, 0]
    absent = np.ones(size, bool)
    absent[places] = False
    for name in padded.keys() - {"reference"}:
        padded[name][absent] = 0
    shape = (size // (ROWS * Q), ROWS, Q)
    parts = {name: x.reshape(*shape, *x.shape[1:]) for name, x in padded.items()}
    return Batches({name: x[k] for name, x in parts.items()} for k in range(shape[0]))


OBJECTIVES = [
    *(Objective(loss=name, alpha=0.5) for name in LOSSES),
    Objective(loss="0.7*kto_pair+0.3*rrpo", token_kl=0.2),
    Objective(reference_free=True),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.loss)
def test_batches_and_padding_do_not_matter(objective):
    rng = np.random.default_rng(0)
    found = arguments(rng, PAIRS)
    if not objective.token_kl:
        del found["token_kl"]
    totals = denominators(jnp.asarray(found["target_mask"]))
    _, expected = tpo_loss(objective=objective, totals=totals, **found)
    forward = lambda params, frozen, batch, reference: batch  # noqa: E731
    held_out = HeldOut(
        batches_of(found, skipped=(2, 5)),
        SimpleNamespace(put=lambda batch: batch),
        jax.jit(make_evaluator(forward, objective)),
        objective,
    )
    metrics = held_out.metrics(TrainState({}, {}, (), jnp.int32(0)))
    assert metrics.pop("pairs") == PAIRS
    whole = {name: float(value) for name, value in expected.items()}
    assert metrics == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert sorted(metrics) == metric_names(objective)


def test_supervised_training_has_losses_alone():
    objective = Objective(dpo_weight=0.0, alpha=1.0)
    assert metric_names(objective) == ["lengths/chosen", "losses/sft", "losses/total"]
    assert dataclasses.replace(objective, token_kl=0.1).uses_live_reference
