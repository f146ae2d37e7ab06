"""The scoring rule of Video-MME-v2: groups of four questions on a video count together."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence

from tpo_jax.errors import InputError
from tpo_jax.evaluation import extraction
from tpo_jax.evaluation.verdicts import ERAS, ScoringRule, Verdict, need

# What the right answers of a group are worth, by their number; in a logical group only those before
# the first wrong one count. Two questions in brackets count in either order.
_RELEVANCE = [100 * n / 16 for n in (0, 1, 4, 9, 16)]
_LOGIC = {
    "[1, 2, 3, 4]": _RELEVANCE,
    "[1, [2, 3], 4]": [100 * n / 12 for n in (0, 1, 4, 7, 12)],
    "[[1, 2], 3, 4]": [100 * n / 10 for n in (0, 1, 2, 5, 10)],
}
_PARTS = ("overall", "relevance", "logic", "level_1", "level_2", "level_3")
_METRICS = [f"videomme_v2_{part}_{kind}" for kind in ("score", "acc") for part in _PARTS]


def _judge(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    letter = extraction.videomme_v2(text, need(doc, "options", str))
    answer, group = need(doc, "answer", str), need(doc, "group_type", str)
    if group not in ("relevance", "logic"):
        raise InputError(f"the doc's 'group_type' must be relevance or logic, not {group!r}")
    if group == "logic" and _structure(doc) not in _LOGIC:
        raise InputError(f"the doc's 'group_structure' must be one of {', '.join(_LOGIC)}")
    if not need(doc, "question_id", str).rpartition("-")[2].isdecimal():
        raise InputError("the doc's 'question_id' must end in the number of the question")
    names = ("video_id", "question_id", "group_type", "group_structure")
    value = {name: doc.get(name) for name in (*names, "level", "second_head", "third_head")}
    score = int(letter.upper() == answer.upper())
    value |= {"pred_answer": letter, "answer": answer, "score": score}
    return Verdict(letter, float(score), letter != "Z", dict.fromkeys(_METRICS, value))


def _structure(value: dict) -> str:
    """Return a group's structure in the spelling of `_LOGIC`."""
    try:
        return json.dumps(json.loads(value["group_structure"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def _aggregate(benchmark: str, metric: str, values: list[dict]) -> float:
    """Return a metric in percent; 0 if its part has no question."""
    part, _, kind = metric.removeprefix("videomme_v2_").rpartition("_")
    if kind == "acc":
        return _mean(part, [(value, 100 * value["score"]) for value in values])
    groups = defaultdict(list)
    for value in values:
        groups[value["video_id"]].append(value)
    scored = []
    for group in groups.values():
        group = sorted(group, key=lambda value: int(value["question_id"].rpartition("-")[2]))
        # A group's kind is that of its first question, its level that of its last.
        named = {"group_type": group[0]["group_type"], "level": group[-1].get("level")}
        scored.append((named, group_score(group)))
    return _mean(part, scored)


def group_score(group: Sequence[dict]) -> float:
    """Return what the answers to one video's questions are worth together, 0 to 100.

    Args:
        group: Logged values in the order of the questions.
    """
    right = [value["score"] for value in group]
    if group[0]["group_type"] == "relevance":
        worth, count = _RELEVANCE, sum(right)
    else:
        structure = _structure(group[0])
        worth, count = _LOGIC[structure], [*right, 0].index(0)
        # The second of two questions in brackets counts without the first.
        either = {"[1, [2, 3], 4]": 1, "[[1, 2], 3, 4]": 0}.get(structure)
        if count == either and any(right[count + 1 : count + 2]):
            count += 1
    return worth[count] if count < len(worth) else 0.0


def _mean(part: str, scored: list[tuple[dict, float]]) -> float:
    if part == "overall":
        chosen = [score for _, score in scored]
    elif part in ("relevance", "logic"):
        chosen = [score for value, score in scored if value["group_type"] == part]
    else:  # levels are numbers or texts
        level = int(part[-1])
        chosen = [score for value, score in scored if value["level"] == level] or [
            score for value, score in scored if value["level"] == str(level)
        ]
    return sum(chosen) / len(chosen) if chosen else 0.0


VIDEOMME_V2 = ScoringRule(
    _judge,
    _aggregate,
    dict.fromkeys(ERAS, "videomme_v2_overall_score"),
    ("group_type", "level", "second_head", "third_head"),
)
