"""Exact match, means with intervals over seeds and over videos, paired comparisons."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray


class Mean(NamedTuple):
    """A mean over seeds with its 95 % interval; the interval of a single seed is NaN."""

    n: int
    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference over seeds, its 95 % interval, and the paired t-test's p against 0."""

    n: int
    mean: float
    low: float
    high: float
    p: float
    above: int  # seeds whose difference is above 0


def normalise(answer: str) -> str:
    """Lower the case, join blanks, drop a final full stop."""
    return re.sub(r"\s+", " ", answer).strip().lower().rstrip(".").rstrip()


def exact(prediction: str, truth: str) -> bool:
    """Return whether two texts agree up to case, blanks and a final full stop."""
    return normalise(prediction) == normalise(truth)


@contextlib.contextmanager
def _equal_values() -> Iterator[None]:
    """Silence SciPy's warning about values without spread; their interval is a point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        yield


def t_interval(values: Values) -> Mean:
    """Return the mean with its 95 % interval by Student's t.

    Raises:
        ValueError: no value.
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        raise ValueError("no value to take the mean of")
    low = high = np.nan
    if len(x) > 1:
        with _equal_values():
            low, high = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    return Mean(len(x), float(x.mean()), float(low), float(high))


def paired(ours: Values, theirs: Values) -> Difference:
    """Compare `ours - theirs`, one value per seed, the same seeds in the same order.

    Raises:
        ValueError: no seed, or not as many on both sides.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values against {len(theirs)}")
    x = np.subtract(ours, theirs)
    p = np.nan
    if len(x) > 1:
        with _equal_values():
            p = stats.ttest_rel(ours, theirs).pvalue
    return Difference(*t_interval(x), float(p), int((x > 0).sum()))


def holm(values: Values) -> np.ndarray:
    """Return the p-values of a family of tests, corrected for their number: float64 `[n]`.

    What is below 0.05 then may be called shown: the probability that any of it is an accident is
    below 0.05 (Holm, "A simple sequentially rejective multiple test procedure", 1979). NaN stands
    for a test that was not made, and stays.
    """
    p = np.array(values, np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    left = len(order) - np.arange(len(order))
    p[order] = np.minimum(1.0, np.maximum.accumulate(left * p[order]))
    return p


def bootstrap(
    correct: Values, videos: Sequence[int] | np.ndarray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of `correct` and its 95 % interval, videos drawn with replacement.

    Args:
        correct: `[n]`, 0 and 1, or differences of two models on the same questions.
        videos: `[n]`, the video of each question.

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
