"""Exact match, intervals over seeds and over videos, paired comparisons, their correction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tpo_jax.study.statistics import bootstrap, exact, holm, paired, t_interval


@pytest.mark.parametrize(
    ("prediction", "truth", "same"),
    [
        ("It is a  red circle", "it is a red circle.", True),
        ("red circle.", "red square", False),
        ("", ".", True),
        ("3", "3.0", False),
    ],
)
def test_exact(prediction, truth, same):
    assert exact(prediction, truth) is same


def test_bootstrap_interval_covers_the_mean_at_its_rate():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        rate = rng.beta(2, 2, size=60)  # questions of a video are correlated
        videos = np.repeat(np.arange(60), 5)
        correct = rng.random(300) < rate[videos]
        _, low, high = bootstrap(correct, videos, draws=400, seed=trial)
        hits += low <= 0.5 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_interval_counts_videos_not_questions():
    videos = np.repeat(np.arange(20), 50)
    correct = np.repeat(np.arange(20) % 2, 50)
    _, low, high = bootstrap(correct, videos)
    assert high - low > 0.3


def test_no_question_is_an_error():
    with pytest.raises(ValueError, match="no question"):
        bootstrap([], [])


def test_intervals_and_tests_are_students():
    ours, theirs = np.random.default_rng(0).normal((0.6, 0.5), 0.1, (7, 2)).T
    half = stats.t.ppf(0.975, 6) * ours.std(ddof=1) / np.sqrt(7)
    mean = ours.mean()
    np.testing.assert_allclose(t_interval(ours)[1:], (mean, mean - half, mean + half), rtol=1e-12)
    found, x = paired(ours, theirs), ours - theirs
    half = stats.t.ppf(0.975, 6) * x.std(ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(found[2:4], (x.mean() - half, x.mean() + half), rtol=1e-10)
    t = abs(x.mean()) / (x.std(ddof=1) / np.sqrt(7))
    np.testing.assert_allclose(found.p, 2 * stats.t.sf(t, 6), rtol=1e-10)
    assert found.above == (ours > theirs).sum()
    assert np.isnan(paired([0.5], [0.4]).low) and np.isnan(paired([0.5], [0.4]).p)
    with pytest.raises(ValueError, match="2 values against 1"):
        paired([1.0, 2.0], [1.0])


def test_equal_differences_have_a_point_as_interval(recwarn):
    assert paired([0.5, 0.75], [0.25, 0.5])[:4] == (2, 0.25, 0.25, 0.25)
    assert not recwarn


def rejected(p: list[float], level: float) -> set[int]:
    """Return what Holm's procedure rejects, step by step as in his paper."""
    left = sorted(range(len(p)), key=lambda i: p[i])
    found = set[int]()
    while left and p[left[0]] <= level / len(left):
        found.add(left.pop(0))
    return found


def test_holm_of_a_known_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.02]), [0.02, np.nan, 0.02])
    assert holm([]).shape == (0,) and holm([0.2]) == [0.2] and holm([0.9, 0.8]).tolist() == [1, 1]


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.5))
def test_corrected_p_says_what_holms_procedure_rejects(p, level):
    corrected = holm(p)
    # Products and quotients round differently, so what is within rounding of the level is left.
    near = np.isclose(corrected, level, rtol=1e-9)
    said = {i for i in range(len(p)) if corrected[i] <= level and not near[i]}
    assert said <= rejected(p, level * (1 + 1e-9))
    assert said >= {i for i in rejected(p, level * (1 - 1e-9)) if not near[i]}
    assert (corrected >= p).all() and (corrected <= np.minimum(1, np.multiply(p, len(p)))).all()


@given(st.permutations([0.001, 0.02, 0.02, 0.4, float("nan")]))
def test_correction_does_not_depend_on_the_order(p):
    known = {value: one for value, one in zip(p, holm(p), strict=True) if not np.isnan(value)}
    assert known == pytest.approx({0.001: 0.004, 0.02: 0.06, 0.4: 0.4})
