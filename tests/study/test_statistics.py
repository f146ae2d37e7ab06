"""Exact match, intervals over seeds and over videos, paired comparisons."""

import numpy as np
import pytest
from scipy import stats

from tpo_jax.study.statistics import bootstrap, exact, paired, t_interval


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
