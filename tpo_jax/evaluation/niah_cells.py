"""Needles, and the cells of the grid that asks for them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tpo_jax.data.processor import Processor
from tpo_jax.errors import InputError
from tpo_jax.inference.generator import round_up

_TEXT_MULTIPLE = 16


class Needle(NamedTuple):
    """A frame and a question about it."""

    frame: np.ndarray  # uint8 [S, S, 3]; of any size where cells are videos
    prompt: np.ndarray  # int32 [n], the question and the template's turn to the answer
    answer: np.ndarray  # int32 [m], without an end-of-turn token
    texts: tuple[str, str]  # the question and the answer


class Cell(NamedTuple):
    """One needle at one place."""

    frames: int  # of the haystack; the model sees one more
    depth: float  # 0: before the first frame, 1: after the last
    needle: int


def make_needle(processor: Processor, frame: np.ndarray, prompt: str, answer: str) -> Needle:
    """Make a needle, its texts tokenised one by one as in the original.

    Args:
        frame: of `Needle`.
        prompt: the question; it begins with the newline that separates it from the frames.

    Raises:
        InputError: an answer without a token.
    """
    if not (reply := processor.encode(answer)):
        raise InputError(f"the answer {answer!r} has no token")
    question = processor.encode(prompt) + processor.turn
    ids, reply_ids = (np.array(tokens, np.int32) for tokens in (question, reply))
    return Needle(frame, ids, reply_ids, (prompt, answer))


def depths(step: float) -> list[float]:
    """Return 0, `step`, … up to 1."""
    return [i * step for i in range(math.floor(1 / step + 1e-6) + 1)]


def by_length(
    cells: Sequence[Cell], length: Callable[[Cell], int], size: int
) -> Iterator[tuple[int, Sequence[Cell]]]:
    """Yield at most `size` cells of one length at a time, and the length, the shortest first."""
    for P, same in itertools.groupby(sorted(cells, key=length), key=length):
        group = list(same)
        for start in range(0, len(group), size):
            yield P, group[start : start + size]


def filled(cells: Sequence[Cell], size: int) -> list[Cell]:
    """Return `size` cells, the last one several times where there are fewer."""
    return [*cells, *[cells[-1]] * (size - len(cells))]


def response_length(needles: Sequence[Needle]) -> int:
    """Return R, the same for all needles."""
    longest = max(len(needle.prompt) + len(needle.answer) - 1 for needle in needles)
    return round_up(longest, _TEXT_MULTIPLE)
