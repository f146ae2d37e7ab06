"""The scoring rules of lmms-eval, one per group of benchmarks: judge a prediction, aggregate.

Those of TVBench, TemporalBench and Video-MME-v2 have files of their own.

The functions keep the names and the shapes of what lmms-eval logs (`lmms_eval/tasks/*/utils.py`).
"""

import random
from collections import defaultdict

from tpo_jax.errors import InputError
from tpo_jax.evaluation import extraction
from tpo_jax.evaluation.temporal_rules import TEMPORALBENCH, TVBENCH
from tpo_jax.evaluation.verdicts import (
    ERAS,
    MIDDLE,
    PAPER,
    TODAY,
    ScoringRule,
    Verdict,
    mean,
    need,
)
from tpo_jax.evaluation.videomme_v2 import VIDEOMME_V2

MLVU_TASKS = {
    "mlvu_dev": ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning"),
    "mlvu_test": (
        *("anomaly_reco", "count", "ego", "needleQA", "order", "plotQA", "sportsQA"),
        *("topic_reasoning", "tutorialQA"),
    ),
}  # fmt: skip


def _letter(text: str, era: str) -> str:
    if era == TODAY:
        return extraction.ranked(text)
    return extraction.first(text, "ABCD", extraction.PAPER_ERA_OPENINGS)


def _videomme(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    letter, answer = _letter(text, era), need(doc, "answer", str)
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
    if era == TODAY:
        # A question's score ignores the case of the gold letter; the mean does not.
        score = float(letter.lower() == answer.lower())
        value |= {"score": score, "videoID": doc.get("videoID")}
    return Verdict(letter, score, bool(letter), {"videomme_perception_score": value})


def _mlvu(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    letter = extraction.before_parenthesis(text) if era == MIDDLE else _letter(text, era)
    answer = need(doc, "answer", str)
    value = {
        "question_id": doc.get("question"),
        "task_type": doc.get("task_type"),
        "pred_answer": letter,
        "answer": answer,
    }
    answered = letter in tuple("ABCDEF")
    return Verdict(letter, float(letter == answer), answered, {_MLVU.metric[era]: value})


def _longvideobench(doc: dict, text: str, era: str, draws: random.Random) -> Verdict:
    options = 0
    while options < 5 and doc.get(f"option{options}") != "N/A":
        options += 1
    if not options:
        raise InputError("the doc's 'option0' must be an option")
    letter = extraction.first(text, "ABCDE", extraction.LONGVIDEOBENCH_OPENINGS)
    parsed = letter or draws.choice("ABCDE"[:options])
    if not 0 <= (choice := need(doc, "correct_choice", int)) < 26:
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
    letter, right = _letter(text, era), need(doc, "answer", str)
    return Verdict(letter, float(letter == right), bool(letter), {"lvbench_score": letter == right})


def _tempcompass(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    answer, dim = need(doc, "answer", str), need(doc, "dim", str)
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


def _percent(benchmark: str, metric: str, values: list[dict]) -> float:
    return 100 * sum(_right(values)) / len(values)


def _mean_of_tasks(benchmark: str, metric: str, values: list[dict]) -> float:
    """Return the unweighted mean over MLVU's tasks, in the paper's era the mean over questions.

    As in lmms-eval, a task without a question counts 0.
    """
    if metric == _MLVU.metric[PAPER]:
        return _percent(benchmark, metric, values)
    tasks: dict[str, list[bool]] = {task: [] for task in MLVU_TASKS[benchmark]}
    for value, right in zip(values, _right(values), strict=True):
        if value["task_type"] not in tasks:
            raise InputError(
                f"task_type {value['task_type']!r} is none of {benchmark}: {', '.join(tasks)}"
            )
        tasks[value["task_type"]].append(right)
    return sum(100 * sum(t) / len(t) for t in tasks.values() if t) / len(tasks)


def _fraction(benchmark: str, metric: str, values: list[dict]) -> float:
    """Return the accuracy, rounded to five decimals.

    As in lmms-eval, each question counts once in its duration group and once in its category.
    """
    groups = defaultdict(list)
    for value in values:
        groups[value["duration_group"]].append(value["parsed_pred"] == value["answer"])
        groups[value["question_category"]].append(value["parsed_pred"] == value["answer"])
    total = sum(sum(group) / len(group) * len(group) for group in groups.values())
    return round(total / (2 * len(values)), 5)


def _ratings(benchmark: str, metric: str, values: list[dict]) -> float:
    return sum(value["rating"] == 1 for value in values) / len(values) * 100


def _always(metric: str) -> dict[str, str]:
    return dict.fromkeys(ERAS, metric)


_VIDEOMME = ScoringRule(
    _videomme,
    _percent,
    _always("videomme_perception_score"),
    ("duration", "domain", "sub_category", "task_type"),
)
_MLVU = ScoringRule(
    _mlvu,
    _mean_of_tasks,
    # lmms-eval's name has had a typo since it has been averaging over tasks.
    _always("mlvu_percetion_score") | {PAPER: "mlvu_perception_score"},
    ("task_type",),
)
LONGVIDEOBENCH = ScoringRule(
    _longvideobench,
    _fraction,
    _always("lvb_acc"),
    ("duration_group", "question_category", "topic_category"),
)
_LVBENCH = ScoringRule(_lvbench, mean, _always("lvbench_score"), ("type", "question_type"))
_TEMPCOMPASS = ScoringRule(_tempcompass, _ratings, _always("avg_accuracy"), ("dim",))

SCORING_RULES: dict[str, ScoringRule] = {
    "videomme": _VIDEOMME,
    "videomme_w_subtitle": _VIDEOMME,
    "videomme_long_w_subtitle": _VIDEOMME,
    "mlvu_dev": _MLVU,
    "mlvu_test": _MLVU,
    "longvideobench_val_v": LONGVIDEOBENCH,
    "longvideobench_val_i": LONGVIDEOBENCH,
    "lvbench": _LVBENCH,
    "tempcompass_multi_choice": _TEMPCOMPASS,
    "tvbench": TVBENCH,
    "temporalbench_short_qa": TEMPORALBENCH,
    "temporalbench_long_qa": TEMPORALBENCH,
    "videomme_v2": VIDEOMME_V2,
    "videomme_v2_w_subtitle": VIDEOMME_V2,
    "videomme_v2_reasoning": VIDEOMME_V2,
}
