"""The scoring rules of TVBench and TemporalBench, benchmarks that need the order of frames."""

import random
import string
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.evaluation import extraction
from tpo_jax.evaluation.verdicts import ERAS, ScoringRule, Verdict, mean, need

MOST_OPTIONS = len(string.ascii_uppercase)


def _tvbench(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    candidates = [str(candidate) for candidate in need(doc, "candidates", list)]
    if not 0 < len(candidates) <= MOST_OPTIONS:
        raise InputError(f"the doc's 'candidates' must be 1 to {MOST_OPTIONS}")
    letter = extraction.tvbench(text, candidates)
    score = float(letter == option_letter(need(doc, "answer", str), candidates))
    return Verdict(letter, score, bool(letter), {"tvbench_acc": score})


def option_letter(answer: str, candidates: list[str]) -> str:
    """Return the letter of TVBench's gold answer, the text of an option.

    As in lmms-eval, digits are the index of an option, from 0; the number of options itself stands
    for the last one.
    """
    answer, letters = answer.strip(), string.ascii_uppercase
    if len(answer) == 1 and answer.isalpha():
        return answer.upper()
    if answer.isdecimal() and len(answer) < 20:
        number = int(answer)
        if number < len(candidates):
            return letters[number]
        if number == len(candidates):
            return letters[number - 1]
    for letter, candidate in zip(letters, candidates, strict=False):
        if extraction.words(candidate) == extraction.words(answer):
            return letter
    return answer.upper()


def _temporalbench(doc: dict, text: str, era: str, _: random.Random) -> Verdict:
    gold, _video = need(doc, "GT", str), need(doc, "video_name", str)
    if not gold or not isinstance(doc.get("idx"), str | int):
        raise InputError("the doc's 'GT' must be a letter and its 'idx' a text or a number")
    letter = text[:1]
    score = float(letter.lower() == gold.lower())
    answered = letter.upper() in ("A", "B")
    return Verdict(letter, score, answered, {"temporalbench_score": {"item": doc, "pred": text}})


def _per_question_and_video(
    benchmark: str, metric: str, values: list[dict[str, Any]]
) -> tuple[float, float]:
    """Return the percentages of right answers and of videos with right answers only.

    As in lmms-eval, the last of several rows with the same `idx` says what is right for all.
    """
    items = {value["item"]["idx"]: value["item"] for value in values}
    right, whole = 0, dict[str, bool]()
    for value in values:
        item = items[value["item"]["idx"]]
        found = value["pred"][:1].lower() == item["GT"].lower()
        right += found
        whole[item["video_name"]] = whole.get(item["video_name"], True) and found
    return 100 * (right / len(values)), 100 * (sum(whole.values()) / len(whole))


TVBENCH = ScoringRule(_tvbench, mean, dict.fromkeys(ERAS, "tvbench_acc"), ("task",))
TEMPORALBENCH = ScoringRule(
    _temporalbench,
    _per_question_and_video,
    dict.fromkeys(ERAS, "temporalbench_score"),
    ("dataset", "category"),
)
