"""Exact match and the bootstrap over videos."""

import numpy as np
import pytest

from tpo_jax.study.scoring import bootstrap, exact


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


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        rate = rng.beta(2, 2, size=60)  # questions of a video are alike
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
