"""Prompts, which are versioned text files, and strict parsers of the replies.

A reply in another format than requested is an error, never a guess.
"""

import functools
import hashlib
import re
import unicodedata
from importlib import resources
from string import Template

from tpo_jax.data.prompts import check_text
from tpo_jax.errors import InputError

# The eight question types of the paper's Figure 6 and their shares in percent; as printed they add
# up to 98.9.
TYPES = {
    "temporal reasoning": 8.7,
    "action": 12.4,
    "causal": 11.1,
    "information extraction": 18.0,
    "descriptive": 12.8,
    "summarization": 7.5,
    "object": 14.9,
    "spatial": 13.5,
}
_QUESTION = re.compile(r"\s*Q:[^\S\n]*(\S[^\n]*)\n\s*A:\s*(\S.*)", re.DOTALL)
_VERDICT = re.compile(r"\s*([123])\s*[:.)]\s*(yes|no|equally)\s*\.?\s*", re.IGNORECASE)


@functools.cache
def load(name: str) -> str:
    """Return the text of a prompt file of this package.

    Args:
        name: Of the file, without suffix.

    Raises:
        InputError: There is no such file.
    """
    folder = resources.files("tpo_jax.curation") / "prompts"
    if not re.fullmatch(r"\w+", name) or not (folder / f"{name}.txt").is_file():
        names = sorted(f.name[:-4] for f in folder.iterdir() if f.name.endswith(".txt"))
        raise InputError(f"no prompt {name!r}; choose from {', '.join(names)}")
    return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


def fingerprint(name: str) -> str:
    """Return the name with a hash of the text, so that an edited prompt is another prompt."""
    return f"{name}:{hashlib.sha256(load(name).encode()).hexdigest()[:12]}"


def fill(name: str, **values: str) -> str:
    """Return the prompt with its `$fields` filled in."""
    return Template(load(name)).substitute(values)


def focus(name: str, question_type: str) -> str:
    """Return the description of a question type in the file `name`."""
    lines = dict(line.split(": ", 1) for line in load(name).splitlines())
    return lines[question_type]


def clean(text: str, what: str) -> str:
    """Return a model's text, stripped.

    Args:
        what: Its name for errors.

    Raises:
        ValueError: The text is empty, or holds a control character or a marker of the chat
            template.
    """
    text = text.strip()
    if not text:
        raise ValueError(f"{what} is empty")
    if odd := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"), ""):
        raise ValueError(f"{what} holds the control character {odd!r}")
    try:
        return check_text(text)
    except InputError as error:
        raise ValueError(f"{what}: {error}") from error


def parse_question(reply: str) -> tuple[str, str] | None:
    """Return question and answer of a question writer's reply; None if it declines.

    Raises:
        ValueError: The reply has another format, or a text cannot be used (see `clean`).
    """
    if reply.strip().rstrip(".").lower() == "none":
        return None
    if not (found := _QUESTION.fullmatch(reply)):
        raise ValueError(f"the question writer did not reply Q: and A: but {_short(reply)}")
    return clean(found[1], "the question"), clean(found[2], "the reference answer")


def parse_verdict(reply: str) -> tuple[str, str, str]:
    """Return the judge's three words in lower case: better, contradicted or ambiguous, correct.

    Raises:
        ValueError: The reply is not three numbered lines with one allowed word each.
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    found = [_VERDICT.fullmatch(line) for line in lines]
    words = [match[2].lower() for match in found if match]
    numbers = [match[1] for match in found if match]
    if len(lines) != 3 or numbers != ["1", "2", "3"] or "equally" in words[1:]:
        raise ValueError(f"the judge did not reply in three lines but {_short(reply)}")
    return words[0], words[1], words[2]


def agreement(own: str, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the verdict that follows from the judge's own answer to the question.

    The answer with the same words, ignoring case and punctuation, is the correct one. Only for
    short answers: two long texts never have the same words.
    """

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())

    good, bad = (words(own) == words(text) for text in (chosen, rejected))
    better = "equally" if good == bad else ("yes" if good else "no")
    return better, "no" if good else "yes", "yes" if good else "no"


KEPT = ("yes", "no", "yes")  # the only verdict that keeps a pair


def _short(reply: str) -> str:
    text = " ".join(reply.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")
