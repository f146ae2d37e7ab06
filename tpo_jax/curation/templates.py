"""What models are told and how their replies are read: versioned text files, strict parsers.

A reply that is not in the form it was asked for is an error, never a guess.
"""

import functools
import hashlib
import re
import unicodedata
from importlib import resources
from string import Template

from tpo_jax.data.prompts import check_text
from tpo_jax.errors import InputError

# The eight types of the paper's Figure 6, and how often each occurs there, in percent; as printed
# they add up to 98.9.
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
    """A prompt file of this package, by its name without the suffix.

    Raises:
        InputError: there is none of that name.
    """
    folder = resources.files("tpo_jax.curation") / "prompts"
    if not re.fullmatch(r"\w+", name) or not (folder / f"{name}.txt").is_file():
        there = sorted(f.name[:-4] for f in folder.iterdir() if f.name.endswith(".txt"))
        raise InputError(f"no prompt {name!r}; there are {', '.join(there)}")
    return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


def fingerprint(name: str) -> str:
    """The name and a hash of the text, so that an edited prompt is another prompt."""
    return f"{name}:{hashlib.sha256(load(name).encode()).hexdigest()[:12]}"


def fill(name: str, **values: str) -> str:
    """The prompt with its `$fields` filled in."""
    return Template(load(name)).substitute(values)


def focus(name: str, question_type: str) -> str:
    """What a question of a type is about, as the file `name` says."""
    lines = dict(line.split(": ", 1) for line in load(name).splitlines())
    return lines[question_type]


def clean(text: str, what: str) -> str:
    """A model's text without surrounding blanks.

    Raises:
        ValueError: it is empty, or holds a control character or a marker of the chat template.
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
    """(question, answer) of a question writer's reply; None where it declines.

    Raises:
        ValueError: another form, or a text that cannot be used.
    """
    if reply.strip().rstrip(".").lower() == "none":
        return None
    if not (found := _QUESTION.fullmatch(reply)):
        raise ValueError(f"the question writer did not reply Q: and A: but {_short(reply)}")
    return clean(found[1], "the question"), clean(found[2], "the reference answer")


def parse_verdict(reply: str) -> tuple[str, str, str]:
    """The judge's three words in lower case: better, contradicted or ambiguous, correct.

    Raises:
        ValueError: anything but three numbered lines of allowed words.
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    found = [_VERDICT.fullmatch(line) for line in lines]
    words = [match[2].lower() for match in found if match]
    numbers = [match[1] for match in found if match]
    if len(lines) != 3 or numbers != ["1", "2", "3"] or "equally" in words[1:]:
        raise ValueError(f"the judge did not reply in three lines but {_short(reply)}")
    return words[0], words[1], words[2]


def agreement(own: str, chosen: str, rejected: str) -> tuple[str, str, str]:
    """The verdict of a judge that was asked the question itself: the answer that has the words of
    its own answer, up to case and punctuation, is the correct one. For short answers; of two long
    texts none has the words of another.
    """

    def said(text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())

    good, bad = (said(own) == said(text) for text in (chosen, rejected))
    better = "equally" if good == bad else ("yes" if good else "no")
    return better, "no" if good else "yes", "yes" if good else "no"


KEPT = ("yes", "no", "yes")  # the only verdict that keeps a pair


def _short(reply: str) -> str:
    text = " ".join(reply.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")
