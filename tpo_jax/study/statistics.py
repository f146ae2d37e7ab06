"""Means over seeds with intervals, and paired comparisons."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Mean(NamedTuple):
    """A mean over seeds with its 95 % interval; NaN where one seed gives none."""

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


def t_interval(values: Sequence[float] | np.ndarray) -> Mean:
    """Mean of `values` with its 95 % interval by Student's t, `n - 1` degrees of freedom.

    Raises:
        ValueError: no value.
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        raise ValueError("no value to take the mean of")
    if len(x) == 1:
        return Mean(1, float(x[0]), float("nan"), float("nan"))
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Mean(len(x), float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def paired(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray) -> Difference:
    """`ours - theirs`, seed by seed.

    Args:
        ours: one value per seed.
        theirs: of the same seeds in the same order.

    Raises:
        ValueError: no seed, or not as many on both sides.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values against {len(theirs)}")
    x = np.subtract(ours, theirs)
    n, mean, low, high = t_interval(x)
    p = float("nan")
    if n > 1:
        spread = x.std(ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = abs(mean) / (spread / np.sqrt(n))
        p = float(2 * stats.t.sf(t, n - 1))
    return Difference(n, mean, low, high, p, int((x > 0).sum()))
