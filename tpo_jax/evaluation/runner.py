"""Answers to the questions of a benchmark, in batches of videos; each is encoded once."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.evaluation.benchmarks import Question
from tpo_jax.families.template import IMAGE, Message
from tpo_jax.inference.generator import Generator, round_up
from tpo_jax.models.pictures import Pictures

# More questions than this on one video are split over several rows. Their number is rounded up to a
# power of two and prompt lengths to a multiple, so that few programs are compiled.
MOST_QUESTIONS, PROMPT_MULTIPLE = 16, 64


T = TypeVar("T")


class Group(NamedTuple):
    """Questions on one video that are answered in one row, and the shape of that row."""

    questions: tuple[Question, ...]
    shape: tuple[int, int, bool]  # questions, tokens of the longest, both rounded up; still images


def _parts(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    return [tuple(items[i : i + size]) for i in range(0, len(items), size)]


Visual = np.ndarray | Pictures
Read = Callable[[Group], tuple[Visual, Row]]


def make_groups(questions: Sequence[Question], processor: Processor) -> list[Group]:
    """Group questions by video, so that rows of one shape follow one another, the large first."""
    videos = defaultdict(list)
    for question in questions:
        before, _, after = question.prompt.rpartition(IMAGE)
        videos[question.video, question.pictures is None, before].append((question, after))
    groups = []
    for (_, whole, _), asked in videos.items():
        for both in _parts(asked, MOST_QUESTIONS):
            part, after = zip(*both, strict=True)
            longest = max(map(processor.question_tokens, after))
            count = 1 << (len(part) - 1).bit_length()
            groups.append(Group(part, (count, round_up(longest, PROMPT_MULTIPLE), not whole)))
    return sorted(groups, key=lambda g: (*g.shape, -g.questions[0].doc_id), reverse=True)


def make_reader(
    processor: Processor, num_frames: int, rule: str = "uniform", system: str = ""
) -> Read:
    """Return a function that decodes a group's video and tokenises its prompts.

    Args:
        num_frames: of a video.
        rule: one of `video.sampling.RULES`.
        system: message before every question; empty: the template's own, if it has one.

    Returns:
        A function that returns frames uint8 `[F, *frame_shape]`, or images, and a row. It raises
        `InputError` for a video or a prompt that cannot be used.
    """

    def asked(prompt: str) -> str | list[Message]:
        return [Message("system", system), Message("user", prompt)] if system else prompt

    def prepare(group: Group) -> tuple[Visual, Row]:
        first, texts = group.questions[0], [asked(q.prompt) for q in group.questions]
        if first.pictures is not None:
            pictures = processor.pictures(first.pictures())
            return pictures, processor.prompts(texts, pictures)
        clip = processor.video(first.video, num_frames, rule)
        return clip.frames, processor.prompts(texts, clip)

    def read(group: Group) -> tuple[Visual, Row]:
        video = str(group.questions[0].video)
        try:
            return prepare(group)
        except InputError as error:
            where = "" if str(error).startswith(video) else f"{video}: "
            raise InputError(f"{where}{error}") from error

    return read


def answer(
    groups: Sequence[Group], read: Read, generator: Generator
) -> Iterator[tuple[list[tuple[int, str, str]], list[str]]]:
    """Yield a batch's (row, prompt, answer), and a line for each question that cannot be asked.

    The videos of the next batches are decoded while the devices work.
    """
    batches = [
        part
        for _, same in itertools.groupby(groups, key=lambda group: group.shape)
        for part in _parts(list(same), generator.batch_rows)
    ]
    with ThreadPoolExecutor() as pool:
        ahead: list[list[Future]] = []
        try:
            for number, batch in enumerate(batches):
                while len(ahead) < 2 and number + len(ahead) < len(batches):
                    ahead.append([pool.submit(read, g) for g in batches[number + len(ahead)]])
                ready, problems = [], []
                for group, future in zip(batch, ahead.pop(0), strict=True):
                    try:
                        ready.append((group, *future.result()))
                    except InputError as error:
                        problems += [f"row {q.doc_id}: {error}" for q in group.questions]
                yield _answer(ready, generator) if ready else [], problems
        finally:
            pool.shutdown(cancel_futures=True)


def _answer(
    ready: Sequence[tuple[Group, Visual, Row]], generator: Generator
) -> list[tuple[int, str, str]]:
    # Every batch has the same size: another size would need another program.
    shape = generator.batch_rows, ready[0][0].shape[0]
    visuals, rows = [visual for _, visual, _ in ready], [row for *_, row in ready]
    texts = generator.answer(visuals, rows, shape=shape)
    return [
        (question.doc_id, question.prompt, text)
        for (group, *_), answers in zip(ready, texts, strict=True)
        for question, text in zip(group.questions, answers, strict=True)
    ]
