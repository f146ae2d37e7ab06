"""What lmms-eval makes of a prediction, and of all of a benchmark: letters, scores, means.

Two eras. `lmms_eval_0.7` is lmms-eval 0.7.2 and later. `paper_era` is what the versions of early
2025 did (0.3.0): other letters are extracted, and MLVU's score is the mean over questions, not over
tasks. LVBench was not there yet; its first version shared Video-MME's extraction.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.evaluation import extraction

ERAS = ("lmms_eval_0.7", "paper_era")

MLVU_TASKS = {
    "mlvu_dev": ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning"),
    "mlvu_test": (
        *("anomaly_reco", "count", "ego", "needleQA", "order", "plotQA", "sportsQA"),
        *("topic_reasoning", "tutorialQA"),
    ),
}  # fmt: skip


class Verdict(NamedTuple):
    """On one prediction: the letter it gives, 1.0 or 0.0, whether it gave one without guessing, and
    what lmms-eval logs under the names of its metrics.
    """

    extracted: str
    score: float
    answered: bool
    metrics: dict[str, Any]


class Family(NamedTuple):
    """How one group of benchmarks is scored.

    Attributes:
        judge: row of the benchmark, stripped prediction, era and random state to a verdict.
        aggregate: benchmark, era and the logged values of the main metric to that metric's value.
        metric: the main metric.
        breakdown: columns by which accuracies are reported.
    """

    judge: Callable[[dict, str, str, random.Random], Verdict]
    aggregate: Callable[[str, str, list], float]
    metric: dict[str, str]
    breakdown: tuple[str, ...]


# Columns that samples are grouped by on the way to an aggregate.
_NAMES = ("id", "videoID", "task_type", "duration_group", "question_category")


class Scorer:
    """Scores the predictions of one benchmark.

    Args:
        benchmark: one of `BENCHMARKS`.
        era: one of `ERAS`.
        seed: of LongVideoBench's random guesses, which are drawn in the order of the predictions as
            lmms-eval does with its own seed 0.

    Raises:
        InputError: an unknown benchmark or era.
    """

    def __init__(self, benchmark: str, era: str = ERAS[0], seed: int = 0):
        for name, value, known in (
            ("benchmark", benchmark, BENCHMARKS),
            ("scorer", era, ERAS),
        ):
            if value not in known:
                raise InputError(f"--{name}={value}: unknown; there are {', '.join(known)}")
        self.benchmark, self.era, self.family = benchmark, era, BENCHMARKS[benchmark]
        self._random = random.Random(seed)

    def judge(self, doc: dict, prediction: str | None) -> Verdict:
        """The verdict on a prediction; None counts as an empty text.

        Raises:
            InputError: `doc`, a row of the benchmark, lacks what is needed.
        """
        prediction = (prediction or "").strip()
        for key in _NAMES:
            if isinstance(name := doc.get(key), list | dict):
                raise InputError(f"the doc's {key!r} must be a text or a number, not {name!r}")
        for key in self.family.breakdown:
            names = doc.get(key)
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, list | dict):
                    raise InputError(f"the doc's {key!r} must hold texts, not {name!r}")
        return self.family.judge(doc, prediction, self.era, self._random)

    def summary(self, docs: Sequence[dict], verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """The aggregate: score, counts, lmms-eval's `results` entry, accuracies per group.

        `score` is in lmms-eval's scale, 0 to 100 but for LongVideoBench and LVBench, which have
        fractions. `no_answer` counts predictions without a letter; `score_without_guessing` counts
        them as wrong where the benchmark guesses.
        """
        if not verdicts:
            raise InputError(f"{self.benchmark}: no prediction to score")
        metric = self.family.metric[self.era]
        values = [v.metrics[metric] for v in verdicts]
        score = self.family.aggregate(self.benchmark, self.era, values)
        summary: dict[str, Any] = {
            "benchmark": self.benchmark,
            "scorer": self.era,
            "metric": metric,
            "score": score,
            "questions": len(verdicts),
            "no_answer": sum(not v.answered for v in verdicts),
        }
        if self.family is _LONGVIDEOBENCH:
            sure = sum(v.score for v in verdicts if v.answered)
            summary["score_without_guessing"] = round(sure / len(verdicts), 5)
        names = list(dict.fromkeys(name for v in verdicts for name in v.metrics))
        results: dict[str, Any] = {"alias": self.benchmark}
        for name in names:
            if name == "submission":
                continue
            items = [v.metrics[name] for v in verdicts if name in v.metrics]
            results[f"{name},none"] = self.family.aggregate(self.benchmark, self.era, items)
            # Of Video-MME's tasks only this one names a column of clusters.
            results |= _errors(name, items, self.era, self.benchmark == "videomme")
        summary["results"] = {self.benchmark: results}
        summary["breakdown"] = {
            column: groups
            for column in self.family.breakdown
            if (groups := _groups(column, docs, verdicts))
        }
        return summary


def _groups(column: str, docs: Sequence[dict], verdicts: Sequence[Verdict]) -> dict[str, dict]:
    """Questions, correct ones and percent per value of a column; a list counts under each value."""
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
    """lmms-eval's standard errors: plain ones where a sample has a number, clustered by video."""
    plain = isinstance(items[0], bool)
    numbers = items if plain else [x["score"] for x in items if "score" in x]
    videos = [x.get("videoID") for x in items] if by_video else []
    clt: float | str = "N/A"
    clustered: float | str = "N/A"
    if len(numbers) > 1:
        clt = float(np.std(numbers, ddof=1) / math.sqrt(len(numbers)))
        if len({video for video in videos if video is not None}) > 1:
            clustered = _clustered(numbers, videos)
    errors = {"_stderr": clt if plain else "N/A"}
    if era == ERAS[0]:
        errors |= {"_stderr_clt": clt, "_stderr_clustered": clustered}
    return {f"{name}{kind},none": value for kind, value in errors.items()}


def _clustered(scores: list[float], clusters: list) -> float:
    """Standard error of the mean where questions on one video are not independent
    (arXiv 2411.00640, equation 4).
    """
    away = np.asarray(scores) - np.mean(scores)
    n = len(away)
    _, group = np.unique([str(c) for c in clusters], return_inverse=True)
    sums, squares = np.bincount(group, away), np.bincount(group, away**2)
    variance = squares.sum() / (n - 1) / n + (sums**2 - squares).sum() / n**2
    return float(math.sqrt(max(variance, 0)))


def _need(doc: dict, key: str, kind: type) -> Any:
    if not isinstance(value := doc.get(key), kind) or isinstance(value, bool):
        raise InputError(f"the doc's {key!r} must be a {kind.__name__}, not {value!r}")
    return value


def _letter(text: str, era: str) -> str:
    if era == ERAS[0]:
        return extraction.ranked(text)
    return extraction.first(text, "ABCD", extraction.PAPER_ERA_OPENINGS)


def _videomme(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    letter, answer = _letter(text, era), _need(doc, "answer", str)
    value = {
        "question_id": doc.get("question_id"),
        "duration": doc.get("duration"),
        "category": doc.get("domain"),
        "sub_category": doc.get("sub_category"),
        "task_category": doc.get("task_type"),
        "pred_answer": letter,
        "answer": answer,
    }
    score = float(letter == answer)
    if era == ERAS[0]:
        # The score of one question forgives the case of the gold letter, the mean does not.
        score = float(letter.lower() == answer.lower())
        value |= {"score": score, "videoID": doc.get("videoID")}
    return Verdict(letter, score, bool(letter), {"videomme_perception_score": value})


def _mlvu(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    letter, answer = _letter(text, era), _need(doc, "answer", str)
    value = {
        "question_id": doc.get("question"),
        "task_type": doc.get("task_type"),
        "pred_answer": letter,
        "answer": answer,
    }
    return Verdict(letter, float(letter == answer), bool(letter), {_MLVU.metric[era]: value})


def _longvideobench(doc: dict, text: str, era: str, draws: random.Random) -> Verdict:
    options = 0
    while options < 5 and doc.get(f"option{options}") != "N/A":
        options += 1
    if not options:
        raise InputError("the doc's 'option0' must be an option")
    letter = extraction.first(text, "ABCDE", extraction.LONGVIDEOBENCH_OPENINGS)
    parsed = letter or draws.choice("ABCDE"[:options])
    if not 0 <= (choice := _need(doc, "correct_choice", int)) < 26:
        raise InputError(f"the doc's 'correct_choice' must number an option, not be {choice}")
    answer = chr(ord("A") + choice)
    value = {
        "id": doc.get("id"),
        "duration_group": doc.get("duration_group"),
        "question_category": doc.get("question_category"),
        "answer": answer,
        "parsed_pred": parsed,
    }
    metrics = {"lvb_acc": value, "submission": {doc.get("id"): text}}
    return Verdict(parsed, float(parsed == answer), bool(letter), metrics)


def _lvbench(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    letter, right = _letter(text, era), _need(doc, "answer", str)
    return Verdict(letter, float(letter == right), bool(letter), {"lvbench_score": letter == right})


def _tempcompass(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    answer, dim = _need(doc, "answer", str), _need(doc, "dim", str)
    letter = extraction.tempcompass(text, answer)
    rating = int(text == answer or letter != "" and letter == answer[:1])
    value = {
        "video_id": doc.get("video_id"),
        "question": doc.get("question"),
        "gt-answer": answer,
        "video-llm-prediction": text,
        "match_success": text == answer or letter != "",
        "rating": rating,
        "dim": dim,
    }
    metrics = {"avg_accuracy": value, f"{dim}_accuracy": value}
    return Verdict(letter, float(rating), bool(value["match_success"]), metrics)


def _right(values: list[dict]) -> list[bool]:
    return [value["pred_answer"] == value["answer"] for value in values]


def _percent(benchmark: str, era: str, values: list[dict]) -> float:
    return 100 * sum(_right(values)) / len(values)


def _mean_of_tasks(benchmark: str, era: str, values: list[dict]) -> float:
    """The unweighted mean over MLVU's tasks; one without a question counts 0, as in lmms-eval."""
    if era != ERAS[0]:
        return _percent(benchmark, era, values)
    tasks: dict[str, list[bool]] = {task: [] for task in MLVU_TASKS[benchmark]}
    for value, right in zip(values, _right(values), strict=True):
        if value["task_type"] not in tasks:
            raise InputError(
                f"task_type {value['task_type']!r} is none of {benchmark}: {', '.join(tasks)}"
            )
        tasks[value["task_type"]].append(right)
    return sum(100 * sum(t) / len(t) for t in tasks.values() if t) / len(tasks)


def _fraction(benchmark: str, era: str, values: list[dict]) -> float:
    """Each question is in a group of durations and in one of categories, as in lmms-eval; rounded
    to five decimals.
    """
    groups = defaultdict(list)
    for value in values:
        groups[value["duration_group"]].append(value["parsed_pred"] == value["answer"])
        groups[value["question_category"]].append(value["parsed_pred"] == value["answer"])
    total = sum(sum(group) / len(group) * len(group) for group in groups.values())
    return round(total / (2 * len(values)), 5)


def _mean(benchmark: str, era: str, values: list[bool]) -> float:
    return sum(values) / len(values)


def _ratings(benchmark: str, era: str, values: list[dict]) -> float:
    return sum(value["rating"] == 1 for value in values) / len(values) * 100


def _always(metric: str) -> dict[str, str]:
    return dict.fromkeys(ERAS, metric)


_VIDEOMME = Family(
    _videomme,
    _percent,
    _always("videomme_perception_score"),
    ("duration", "domain", "sub_category", "task_type"),
)
_MLVU = Family(
    _mlvu,
    _mean_of_tasks,
    # The name of today lost a letter.
    {"lmms_eval_0.7": "mlvu_percetion_score", "paper_era": "mlvu_perception_score"},
    ("task_type",),
)
_LONGVIDEOBENCH = Family(
    _longvideobench,
    _fraction,
    _always("lvb_acc"),
    ("duration_group", "question_category", "topic_category"),
)
_LVBENCH = Family(_lvbench, _mean, _always("lvbench_score"), ("type", "question_type"))
_TEMPCOMPASS = Family(_tempcompass, _ratings, _always("avg_accuracy"), ("dim",))

BENCHMARKS: dict[str, Family] = {
    "videomme": _VIDEOMME,
    "videomme_w_subtitle": _VIDEOMME,
    "videomme_long_w_subtitle": _VIDEOMME,
    "mlvu_dev": _MLVU,
    "mlvu_test": _MLVU,
    "longvideobench_val_v": _LONGVIDEOBENCH,
    "longvideobench_val_i": _LONGVIDEOBENCH,
    "lvbench": _LVBENCH,
    "tempcompass_multi_choice": _TEMPCOMPASS,
}
