"""Prompt templates: the text around a row's visuals, and which of it is labelled."""

import dataclasses
from collections.abc import Mapping, Sequence

from tpo_jax.errors import InputError

IMAGE = "<image>"
PLACEHOLDERS = (IMAGE, "<video>")
# Names of a family's templates: `inference`, as its published inference code writes prompts, and
# `dpo_trainer`, as the original preference trainer writes and labels them.
STYLES = ("inference", "dpo_trainer")
TIME_INSTRUCTIONS = ("none", "inline", "newline")

# Texts that are tokenised one by one, and whether their tokens are labelled.
Pieces = Sequence[tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt and its answer: `[head][visual][opening]\\n[question][turn][answer][end]`.

    The opening is the sentence on frame times. A family with another order overrides
    `around_visual` or `around_images`.
    """

    head: str  # system message and beginning of the user's turn
    turn: str  # end of the user's turn and beginning of the answer
    end: Pieces  # behind the answer; labelled tokens are learned
    system: str  # the system message that the head holds; "": none
    markers: tuple[str, ...]  # texts that no question or answer may hold
    tokens: tuple[str, ...]  # texts that are one token each
    stop: tuple[str, ...]  # tokens that end an answer
    token_ids: Mapping[str, int]  # published ids of tokens, where a vocabulary is large enough

    def around_visual(self, opening: str, question: str) -> list[Pieces]:
        """Return the texts around one visual: before it, the part behind it that all questions on
        it share, and all that is behind it.
        """
        behind = f"{opening}\n{question}{self.turn}"
        return [[(self.head, False)], [(opening, False)], [(behind, False)]]

    def around_images(self, question: str, images: int) -> list[Pieces]:
        """Return the texts before, between and behind images, the last two as `around_visual`.

        Images without a placeholder come first, one blank between them, as in lmms-eval.

        Raises:
            InputError: placeholders that do not fit the images, or a marker in the question.
        """
        if images and IMAGE not in question:
            question = " ".join([IMAGE] * images) + "\n" + question
        chunks = (self.head + question + self.turn).split(IMAGE)
        shared = self.head if not images else ""
        return [[(text, False)] for text in (*chunks[:-1], shared, chunks[-1])]

    def time_opening(self, mode: str, timestamps: Sequence[float], duration: float) -> str:
        """Return the sentence on frame times, as it stands directly behind the visual.

        Args:
            mode: one of `TIME_INSTRUCTIONS`; `none`: no sentence.
            timestamps: of the frames, seconds.
            duration: of the video, seconds.

        Raises:
            InputError: an unknown mode, or one this template has no sentence for.
        """
        if mode == "none":
            return ""
        raise InputError(f"time_instruction={mode!r}: this model has no sentence on frame times")
