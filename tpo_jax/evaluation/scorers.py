"""Score predictions as lmms-eval does: letters, scores, means, standard errors.

Three eras of its rules: `lmms_eval_0.7` is lmms-eval 0.7.2 and later; `paper_era` is 0.3.0, of
early 2025, which extracts other letters and averages MLVU over questions, not over tasks; between
them, `lmms_eval_0.3.2` has the rules of 0.3.0 but for MLVU. LVBench was added then; its first
version shared Video-MME's extraction.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.evaluation.scoring_rules import LONGVIDEOBENCH, SCORING_RULES
from tpo_jax.evaluation.temporal_rules import TEMPORALBENCH
from tpo_jax.evaluation.verdicts import ERAS, TODAY, Verdict

# Columns that samples are grouped by when they are aggregated.
_NAMES = ("id", "videoID", "video_id", "task_type", "duration_group", "question_category")


class Scorer:
    """Scores the predictions of one benchmark.

    Args:
        benchmark: One of `SCORING_RULES`.
        era: One of `ERAS`.
        seed: Of LongVideoBench's random guesses, drawn in the order of the predictions; lmms-eval
            uses 0.

    Raises:
        InputError: The benchmark or era is unknown.
    """

    def __init__(self, benchmark: str, era: str = TODAY, seed: int = 0):
        for name, value, known in (
            ("benchmark", benchmark, SCORING_RULES),
            ("scorer", era, ERAS),
        ):
            if value not in known:
                raise InputError(f"--{name}={value}: unknown; choose from {', '.join(known)}")
        self.benchmark, self.era, self.rule = benchmark, era, SCORING_RULES[benchmark]
        self._random = random.Random(seed)

    def judge(self, doc: dict, prediction: str | None) -> Verdict:
        """Return the verdict on a prediction.

        Args:
            doc: Row of the benchmark.
            prediction: Text of the model; None counts as empty.

        Raises:
            InputError: The row lacks a column, or a column has the wrong type.
        """
        prediction = (prediction or "").strip()
        for key in _NAMES:
            if isinstance(name := doc.get(key), list | dict):
                raise InputError(f"the doc's {key!r} must be a text or a number, not {name!r}")
        for key in self.rule.breakdown:
            names = doc.get(key)
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, list | dict):
                    raise InputError(f"the doc's {key!r} must hold texts, not {name!r}")
        return self.rule.judge(doc, prediction, self.era, self._random)

    def summary(self, docs: Sequence[dict], verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return score, counts, lmms-eval's `results` entry and accuracies per group.

        `score` is on lmms-eval's scale: 0 to 1 for LongVideoBench, LVBench and TVBench, 0 to 100
        for the others. `no_answer` counts predictions without a letter; where lmms-eval guesses
        one, `score_without_guessing` counts them as wrong. TemporalBench has `score` for its
        questions and `multiple_binary_accuracy` for its videos.
        """
        if not verdicts:
            raise InputError(f"{self.benchmark}: no prediction to score")
        metric = self.rule.metric[self.era]
        values = [v.metrics[metric] for v in verdicts]
        score = self.rule.aggregate(self.benchmark, metric, values)
        by_video = {}
        if self.rule is TEMPORALBENCH:
            score, by_video["multiple_binary_accuracy"] = score
        summary: dict[str, Any] = {
            "benchmark": self.benchmark,
            "scorer": self.era,
            "metric": metric,
            "score": score,
            **by_video,
            "questions": len(verdicts),
            "no_answer": sum(not v.answered for v in verdicts),
        }
        if self.rule is LONGVIDEOBENCH:
            sure = sum(v.score for v in verdicts if v.answered)
            summary["score_without_guessing"] = round(sure / len(verdicts), 5)
        names = list(dict.fromkeys(name for v in verdicts for name in v.metrics))
        results: dict[str, Any] = {"alias": self.benchmark}
        for name in names:
            if name == "submission":
                continue
            items = [v.metrics[name] for v in verdicts if name in v.metrics]
            results[f"{name},none"] = self.rule.aggregate(self.benchmark, name, items)
            # Of Video-MME's tasks only this one names a cluster column.
            results |= _errors(name, items, self.era, self.benchmark == "videomme")
        summary["results"] = {self.benchmark: results}
        summary["breakdown"] = {
            column: groups
            for column in self.rule.breakdown
            if (groups := _groups(column, docs, verdicts))
        }
        return summary


def _groups(column: str, docs: Sequence[dict], verdicts: Sequence[Verdict]) -> dict[str, dict]:
    """Return accuracies per value of a column; a list counts under each of its values."""
    scores = defaultdict(list)
    for doc, verdict in zip(docs, verdicts, strict=True):
        value = doc.get(column)
        for name in value if isinstance(value, list) else [value]:
            if name is not None:
                scores[name].append(verdict.score)
    return {
        str(name): {
            "questions": len(s),
            "correct": int(sum(s)),
            "percent": 100 * sum(s) / len(s),
        }
        for name, s in sorted(scores.items(), key=lambda item: (str(type(item[0])), item[0]))
    }


def _errors(name: str, items: list, era: str, by_video: bool) -> dict[str, Any]:
    """Return lmms-eval's standard errors of a metric, plain and clustered by video."""
    plain = isinstance(items[0], bool | float)
    numbers = items if plain else [x["score"] for x in items if "score" in x]
    videos = [x.get("videoID") for x in items] if by_video else []
    clt: float | str = "N/A"
    clustered: float | str = "N/A"
    if len(numbers) > 1:
        clt = float(np.std(numbers, ddof=1) / math.sqrt(len(numbers)))
        if len({video for video in videos if video is not None}) > 1:
            clustered = _clustered(numbers, videos)
    errors = {"_stderr": clt if plain else "N/A"}
    if era == TODAY:
        errors |= {"_stderr_clt": clt, "_stderr_clustered": clustered}
    return {f"{name}{kind},none": value for kind, value in errors.items()}


def _clustered(scores: list[float], clusters: list) -> float:
    """Return the standard error of the mean, clustered (arXiv 2411.00640, equation 4)."""
    away = np.asarray(scores) - np.mean(scores)
    n = len(away)
    _, group = np.unique([str(c) for c in clusters], return_inverse=True)
    sums, squares = np.bincount(group, away), np.bincount(group, away**2)
    variance = squares.sum() / (n - 1) / n + (sums**2 - squares).sum() / n**2
    return float(math.sqrt(max(variance, 0)))
