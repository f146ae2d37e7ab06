"""The filters against a plain NumPy oracle, and what the settings promise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_jax.errors import InputError
from tpo_jax.generation.sampling import Sampling, choose, filter_logits

W = 24


def oracle(logits, top_k, top_p):
    """Kept ids, token by token from the most probable one."""
    ranked = np.argsort(-logits, kind="stable")[: top_k or None]
    probabilities = np.exp(logits[ranked] - logits.max())
    probabilities /= probabilities.sum()
    kept, mass = set(), 0.0
    for token, probability in zip(ranked, probabilities, strict=True):
        if mass < top_p:
            kept.add(int(token))
        mass += probability
    return kept


@settings(max_examples=200)
@given(seed=st.integers(0, 2**31), top_k=st.integers(0, W + 3), top_p=st.floats(0.01, 1.0))
def test_filters_equal_the_oracle(seed, top_k, top_p) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, W).astype(np.float32)
    filtered = np.asarray(filter_logits(logits, top_k, np.float32(top_p)))
    kept = set(np.flatnonzero(np.isfinite(filtered)).tolist())
    # A probability mass that equals top_p to rounding may fall on either side.
    bounds = [oracle(logits, top_k, p) for p in (top_p - 1e-5, top_p + 1e-5)]
    assert bounds[0] <= kept <= bounds[1]
    np.testing.assert_array_equal(filtered[sorted(kept)], logits[sorted(kept)])


def test_draws_follow_the_filtered_distribution() -> None:
    logits = jnp.array([2.0, 1.0, 0.0, -1.0, 5.0])
    n = 20_000
    sampling = Sampling(temperature=1.5, top_k=3)
    tokens = choose(
        jnp.broadcast_to(logits, (n, 1, 5)),
        jnp.zeros((n, 1, 5), bool),
        jax.random.split(jax.random.key(0), (n, 1)),
        sampling,
        4,  # id 4 is no token
    )
    expected = np.exp(np.array([2.0, 1.0, 0.0]) / 1.5)
    frequencies = np.bincount(np.asarray(tokens).ravel(), minlength=5) / n
    np.testing.assert_allclose(frequencies[:3], expected / expected.sum(), atol=0.015)
    assert not frequencies[3:].any()


def test_the_penalty_acts_on_both_signs() -> None:
    logits = jnp.array([[[1.0, 0.95, -0.5], [-1.0, -1.05, -9.0]]])
    seen = jnp.array([[[True, False, False]] * 2])
    keys = jax.random.split(jax.random.key(0), (1, 2))
    plain = choose(logits, seen, keys, Sampling(), 3)
    penalised = choose(logits, seen, keys, Sampling(repetition_penalty=1.2), 3)
    assert plain.tolist() == [[0, 0]]
    assert penalised.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"repetition_penalty": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
    ],
)
def test_settings_out_of_range_are_named(setting) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        Sampling(**setting).check()
