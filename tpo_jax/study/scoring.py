"""Exact match, and intervals that respect that questions share a video."""

import re
from collections.abc import Sequence

import numpy as np


def normalise(answer: str) -> str:
    """Lower case, single blanks, no closing full stop."""
    return re.sub(r"\s+", " ", answer).strip().lower().rstrip(".").rstrip()


def exact(prediction: str, truth: str) -> bool:
    """Whether the two texts are the same answer up to case, blanks and a closing full stop."""
    return normalise(prediction) == normalise(truth)


def bootstrap(
    correct: np.ndarray, videos: Sequence[int] | np.ndarray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `correct` with its 95 % interval, videos drawn with replacement.

    Args:
        correct: `[n]`, any numbers: 0 and 1, or differences of two models on the same questions.
        videos: `[n]`, the video of each question.
        draws: resamples.
        seed: of the resamples.

    Returns:
        (mean, lower, upper).

    Raises:
        ValueError: no question.
    """
    values = np.asarray(correct, np.float64)
    if not len(values):
        raise ValueError("no question to take the mean of")
    _, group = np.unique(np.asarray(videos), return_inverse=True)
    sums = np.bincount(group, values)
    counts = np.bincount(group)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
