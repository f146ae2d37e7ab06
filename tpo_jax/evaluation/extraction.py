"""Extract the letter of an answer by the rules of lmms-eval, from any string.

lmms-eval 0.7.2 changed the rule for Video-MME, MLVU and LVBench: `ranked` is the new rule, `first`
the old one, which LongVideoBench still uses.
"""

import re
import string
from collections.abc import Sequence

# Phrases before the letter that lmms-eval 0.7 looks for in the lower-cased answer.
_PHRASES = tuple(
    the + phrase
    for phrase in (
        *("answer is", "correct answer is", "best answer is", "correct option is"),
        *("best option is", "choice is", "correct choice is"),
    )
    for the in ("the ", "")
) + (
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_START, _END, _PHRASE, _FALLBACK = 10, 9, 7, 0
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))

OPENINGS = ("The best answer is", "The correct answer is", "The answer is", "The answer")
LONGVIDEOBENCH_OPENINGS = (
    *OPENINGS,
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)
# Two commas are missing in the original, so two pairs of openings are joined.
PAPER_ERA_OPENINGS = (
    *OPENINGS,
    *("The best option isThe correct option is", "Best answer:Best option:"),
)
_VIDEOMME_V2_OPENINGS = (
    *OPENINGS,
    *("The best option is", "The correct option is", "Final Answer:", "Best answer:"),
    *("Best option:", "Answer:", "Option:"),
)
_BARE = r"[ \t]*(?:\*\*[ \t]*)?([A-H])(?:[ \t]*\*\*)?[ \t]*"  # bold or not
_LAST_LINE = re.compile(rf"(?:^|\n){_BARE}[.)]?[ \t]*$", re.IGNORECASE)
_OPENING = re.compile(rf"{_BARE}(?:[.)]|\r?\n|$)", re.IGNORECASE)
_SAID = re.compile(
    rf"(?:{'|'.join(map(re.escape, _VIDEOMME_V2_OPENINGS))}"
    r"|\b(?:answer|option)(?:\s+(?:is|would\s+be)|\s*:))[\s:*]*([A-H])\b",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*\s*([A-H])(?=\s*\*\*|[.)])", re.IGNORECASE)


def ranked(text: str, letters: str = "ABCD") -> str:
    """Return the letter in the highest-ranked place, the rightmost among equals, or "".

    Places by rank: start of the text, end of the text, after a phrase such as "the answer is",
    `(A)`, `A.`, `A:`, `A)`, `A` before a space, anywhere.

    Args:
        letters: Upper case; lower-case letters never count.
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    if not bare:
        return ""
    found = [
        (rank, position, letter)
        for letter in letters
        for form, rank in _FORMS
        if (position := text.rfind(form.format(letter))) >= 0
    ]
    lowered = text.lower()  # its positions are used for `text`, as in the original
    for phrase in _PHRASES:
        if (position := lowered.find(phrase)) >= 0:
            after = [(text.find(letter, position + len(phrase)), letter) for letter in letters]
            found += [(_PHRASE, *place) for place in after if place[0] >= 0]
    if bare[0] in letters and not bare[1:2].isalpha():
        found.append((_START, 0, bare[0]))
    if bare[-1] in letters and not bare[-2:-1].isalpha():
        found.append((_END, len(text), bare[-1]))
    if not found:
        found = [(_FALLBACK, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found)[2] if found else ""


def first(text: str, letters: str, openings: Sequence[str]) -> str:
    """Return the first of `letters` once all `openings` are removed, or ""."""
    text = text.strip()
    for opening in openings:
        text = text.replace(opening, "")
    match = re.search(f"[{letters}]", text)
    return match[0] if match else ""


def before_parenthesis(text: str) -> str:
    """Return the character before the first `)`, or "" if there is none; without `)` all the text.

    MLVU's rule in lmms-eval 0.3.2 to 0.7.1: any letter counts, `B.` and `The answer is B` are no
    letters.
    """
    end = text.find(")")
    return text[max(end - 1, 0) : end] if end >= 0 else text


def tempcompass(text: str, answer: str) -> str:
    """Return the letter of a multiple-choice answer: `B`, `B.…`, `B)…`, or all of `answer`.

    lmms-eval asks GPT about any other text, or counts it as wrong without GPT; here it gives "".
    """
    if text == answer:
        return answer[:1]
    if text in ("A", "B", "C", "D") or re.match(r"[ABCD][.)]", text):
        return text[0]
    return ""


def tvbench(text: str, candidates: Sequence[str]) -> str:
    """Return the letter of an option of TVBench, or "".

    It is the first letter that stands alone, else the first character, else the letter of the one
    option that the text holds; upper or lower case. What is no option's letter is passed over, but
    with fewer than two options both A and B count.
    """
    letters = string.ascii_uppercase[: max(len(candidates), 2)]
    upper = text.strip().upper()
    for place in (re.search(r"\b([A-Z])\b", upper), re.match(r"\s*[(\[]?([A-Z])", upper)):
        if place and place[1] in letters:
            return place[1]
    held = [
        letter
        for letter, option in zip(letters, map(words, candidates), strict=False)
        if option and option in words(text)
    ]
    return held[0] if len(held) == 1 else ""


def words(text: str) -> str:
    """Return the text in lower case with single spaces."""
    return " ".join(text.lower().split())


def videomme_v2(text: str, options: str) -> str:
    """Return the letter of an option of Video-MME-v2, or "Z".

    It is the letter that is the last line, else the one that opens the text, else the last one
    after a phrase such as "the answer is", else the only one in bold, A to H in either case; else
    that of the only option whose text the answer holds.

    Args:
        options: One on each line, `A. …`.
    """
    for place in (_LAST_LINE.search(text.strip()), _OPENING.match(text.strip())):
        if place:
            return place[1].upper()
    if said := _SAID.findall(text.strip()):
        return said[-1].upper()
    if len(bold := {letter.upper() for letter in _BOLD.findall(text.strip())}) == 1:
        return bold.pop()
    held = []
    for number, line in enumerate(options.split("\n")):
        letter = chr(ord("A") + number)
        _, dot, option = line.partition(f"{letter}.")
        if dot and option.strip(". \n").lower() in text.lower():
            held.append(letter)
    return held[0] if len(held) == 1 else "Z"


def without_reasoning(text: str) -> str:
    """Return the text without `<think>` and `<analysis>` blocks, stripped.

    If only a closing tag is found, everything before it is removed.
    """
    for tag in ("think", "analysis"):
        opening, closing = f"<{tag}>", f"</{tag}>"
        while (start := text.find(opening)) >= 0 and (end := text.find(closing, start)) >= 0:
            text = text[:start] + text[end + len(closing) :]
        if opening not in text:
            text = text.rpartition(closing)[2]
    return text.strip()
