"""Prompt templates: how a conversation on visuals is written, and which parts are labelled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig

IMAGE = "<image>"
PLACEHOLDERS = (IMAGE, "<video>")
# Names of a family's templates: `inference`, as its published inference code writes prompts, and
# `dpo_trainer`, as the original preference trainer writes and labels them.
STYLES = ("inference", "dpo_trainer")
TIME_INSTRUCTIONS = ("none", "inline", "newline")

ROLES = ("system", "user", "assistant")

# Texts that are tokenised one by one, and whether their tokens are labelled.
Pieces = Sequence[tuple[str, bool]]
# What a prompt says about the times of a video's frames: a text after the video or, where it is
# shown in groups of frames, a text before each group.
Opening = str | tuple[str, ...]


def sentence_of(opening: Opening) -> str:
    """Return the opening of a video that is shown whole.

    Raises:
        TypeError: the opening is texts before groups of frames, of another template.
    """
    if not isinstance(opening, str):
        raise TypeError(f"this template shows a video whole, not in groups after {opening!r}")
    return opening


class Message(NamedTuple):
    """One message of a conversation; a placeholder stands for a visual only in a user's message."""

    role: str  # one of `ROLES`; a system message comes first
    content: str


# What a model is asked: a text, or a conversation that ends with the message to be answered.
Question = str | Sequence[Message]


def conversation_of(question: Question) -> tuple[Message, ...]:
    """Return the messages of a question.

    Raises:
        InputError: An unknown role, a system message after the first, or an end that is no user's.
    """
    if isinstance(question, str):
        return (Message("user", question),)
    roles = [message.role for message in question]
    if unknown := set(roles) - set(ROLES):
        raise InputError(f"role {min(unknown)!r} must be one of {', '.join(ROLES)}")
    if "system" in roles[1:]:
        raise InputError("a system message must come first")
    if roles[-1:] != ["user"]:
        raise InputError("the last message before an answer must be the user's")
    return tuple(question)


def visual_at(conversation: Sequence[Message]) -> int:
    """Return the index of the message a visual opens: a user's with a placeholder, or the last."""
    for i, (role, content) in enumerate(conversation):
        if role == "user" and any(placeholder in content for placeholder in PLACEHOLDERS):
            return i
    return len(conversation) - 1


@dataclasses.dataclass(frozen=True)
class Template:
    """How a conversation on visuals is written; a visual stands at the head of a user's message.

    `[system][user: [visual][opening]\\n[question]][assistant: [answer]][user: [question]]…`. The
    opening is the sentence on frame times. A family with another order overrides `around_visual`
    or `around_images`.
    """

    around: Mapping[str, tuple[str, str]]  # by role, the texts before and after a message
    end: Pieces  # after the last answer; labelled tokens are learned
    system: str  # of a conversation without a system message; "": none is written
    markers: tuple[str, ...]  # texts that no message may hold
    tokens: tuple[str, ...]  # texts that are one token each
    stop: tuple[str, ...]  # tokens that end an answer
    token_ids: Mapping[str, int]  # published ids of tokens, where a vocabulary is large enough

    @property
    def head(self) -> str:
        """Return what stands before the visual of a question without earlier messages."""
        return self.written(self.with_system(())) + self.around["user"][0]

    @property
    def turn(self) -> str:
        """Return what stands between a question and its answer."""
        return self.around["user"][1] + self.around["assistant"][0]

    def with_system(self, conversation: Sequence[Message]) -> tuple[Message, ...]:
        """Return a conversation with the template's own system message if it has none."""
        if not self.system or [m.role for m in conversation[:1]] == ["system"]:
            return tuple(conversation)
        return (Message("system", self.system), *conversation)

    def written(self, messages: Sequence[Message]) -> str:
        """Return whole messages as text."""
        return "".join(m.content.join(self.around[m.role]) for m in messages)

    def tokens_and_opening(
        self,
        config: ModelConfig,
        frames: np.ndarray,
        times: Sequence[float],
        duration: float,
        mode: str,
    ) -> tuple[int | Sequence[int], Opening]:
        """Return the number of visual tokens of a video, or of each group of its frames, and what
        the prompt says about their times.

        Args:
            frames: from `Family.preprocess`; empty if only lengths are asked for. More than `times`
                if the lengths are those of a video with fewer of these frames.
            times: of the video's frames, seconds; empty if unknown.
            duration: of the video, seconds.
            mode: one of `TIME_INSTRUCTIONS`.
        """
        if not len(times):
            return config.visual_tokens(len(frames)), ""
        opening = self.time_opening(mode, times, duration)
        return config.visual_tokens(len(times)), opening

    def around_visual(
        self, opening: Opening, conversation: Sequence[Message], at: int
    ) -> list[Pieces]:
        """Return the texts around one visual: the text before it, the part after it that all
        questions share, and all of the text after it. If it is shown in groups of frames, there is
        a text before each group.

        Args:
            opening: from `tokens_and_opening`.
            conversation: messages without placeholders, the last one to be answered.
            at: index of the user's message that the visual opens.
        """
        before, after = self.with_system(conversation[:at]), conversation[at + 1 :]
        begin, end = self.around["user"]
        sentence = sentence_of(opening)
        behind = f"{sentence}\n{conversation[at].content}{end}{self.written(after)}"
        behind += self.around["assistant"][0]
        texts = (self.written(before) + begin, sentence, behind)
        return [[(text, False)] for text in texts]

    def around_images(self, conversation: Sequence[Message], images: int) -> list[Pieces]:
        """Return the texts before, between and after images, the last two as in `around_visual`.

        Images stand at the placeholders of users' messages. Without a placeholder they come first
        in the last message, separated by a blank, as in lmms-eval.

        Raises:
            InputError: placeholders that do not fit the images.
        """
        asked = "".join(m.content for m in conversation if m.role == "user")
        if images and IMAGE not in asked:
            content = " ".join([IMAGE] * images) + "\n" + conversation[-1].content
            conversation = (*conversation[:-1], Message("user", content))
        chunks = [""]
        for role, content in self.with_system(conversation):
            begin, end = self.around[role]
            first, *others = content.split(IMAGE) if role == "user" else [content]
            chunks[-1] += begin + first
            chunks += others
            chunks[-1] += end
        chunks[-1] += self.around["assistant"][0]
        shared = self.head if not images else ""
        return [[(text, False)] for text in (*chunks[:-1], shared, chunks[-1])]

    def time_opening(self, mode: str, timestamps: Sequence[float], duration: float) -> str:
        """Return the sentence on frame times, as it stands directly after the visual.

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
