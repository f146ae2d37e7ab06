"""What a scoring rule is, and what it says about a prediction."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from tpo_jax.errors import InputError

# lmms-eval 0.7.2 and later; 0.3.2 to 0.7.1; 0.3.0.
ERAS = ("lmms_eval_0.7", "lmms_eval_0.3.2", "paper_era")
TODAY, MIDDLE, PAPER = ERAS


class Verdict(NamedTuple):
    """The score of one prediction.

    Attributes:
        extracted: The letter that was extracted, or guessed.
        score: 1.0 or 0.0.
        answered: Whether a letter was found without guessing.
        metrics: What lmms-eval logs, by metric name.
    """

    extracted: str
    score: float
    answered: bool
    metrics: dict[str, Any]


class ScoringRule(NamedTuple):
    """How one group of benchmarks is scored.

    Attributes:
        judge: Maps a row, a stripped prediction, an era and a random state to a verdict.
        aggregate: Maps benchmark, name of a metric and its logged values to the metric's value,
            a number; two for TemporalBench.
        metric: Name of the main metric, by era.
        breakdown: Columns by which accuracies are reported.
    """

    judge: Callable[[dict, str, str, random.Random], Verdict]
    aggregate: Callable[[str, str, list], Any]
    metric: dict[str, str]
    breakdown: tuple[str, ...]


def mean(benchmark: str, metric: str, values: list[float]) -> float:
    """Return the mean of logged scores, for `ScoringRule.aggregate`."""
    return sum(values) / len(values)


def need(doc: dict, key: str, kind: type) -> Any:
    """Return a column of a row.

    Raises:
        InputError: It is missing or of another type; True and False are no numbers.
    """
    if not isinstance(value := doc.get(key), kind) or isinstance(value, bool):
        raise InputError(f"the doc's {key!r} must be a {kind.__name__}, not {value!r}")
    return value
