"""Answers to all questions of a benchmark: batches of videos, each encoded once for all its own."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.evaluation.benchmarks import Question
from tpo_jax.families.template import IMAGE
from tpo_jax.inference.generator import Generator, round_up
from tpo_jax.models.pictures import Pictures

# More questions than this on one video are split over several rows; rows of a batch have a power of
# two of them, and prompts of like length: few programs are compiled.
MOST_QUESTIONS, PROMPT_MULTIPLE = 16, 64


T = TypeVar("T")


class Group(NamedTuple):
    """Questions on one video that are answered in one row, and the shape of that row: questions,
    tokens of the longest, both rounded up, and whether the video is a row of images.
    """

    questions: tuple[Question, ...]
    shape: tuple[int, int, bool]


def _parts(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    return [tuple(items[i : i + size]) for i in range(0, len(items), size)]


Visual = np.ndarray | Pictures
Read = Callable[[Group], tuple[Visual, Row]]


def make_groups(questions: Sequence[Question], processor: Processor) -> list[Group]:
    """Questions by video, ordered so that rows of one shape follow one another, the large first."""
    videos = defaultdict(list)
    for question in questions:
        before, _, after = question.prompt.rpartition(IMAGE)
        videos[question.video, question.pictures is None, before].append((question, after))
    groups = []
    for (_, whole, _), asked in videos.items():
        for both in _parts(asked, MOST_QUESTIONS):
            part, after = zip(*both, strict=True)
            texts = [f"\n{text}{processor.template.turn}" for text in after]
            encode = processor.tokenizer.encode
            longest = max(len(encode(t, add_special_tokens=False).ids) for t in texts)
            count = 1 << (len(part) - 1).bit_length()
            groups.append(Group(part, (count, round_up(longest, PROMPT_MULTIPLE), not whole)))
    return sorted(groups, key=lambda g: (*g.shape, -g.questions[0].doc_id), reverse=True)


def make_reader(processor: Processor, num_frames: int) -> Read:
    """Return a function that decodes a group's video and tokenises its prompts.

    It gives frames uint8 `[F, S, S, 3]`, or images, and a row with as many continuations as the
    shape of the group says, those without a question empty. It raises `InputError` for a video or
    a prompt that cannot be used.
    """

    def prepare(group: Group) -> tuple[Visual, Row]:
        texts, first = [q.prompt for q in group.questions], group.questions[0]
        if first.pictures is not None:
            pictures = processor.pictures(first.pictures())
            return pictures, processor.prompts(texts, pictures)
        clip = processor.video(first.video, num_frames)
        return clip.frames, processor.prompts(texts, clip)

    def read(group: Group) -> tuple[Visual, Row]:
        video = str(group.questions[0].video)
        try:
            visual, row = prepare(group)
        except InputError as error:
            where = "" if str(error).startswith(video) else f"{video}: "
            raise InputError(f"{where}{error}") from error
        missing = group.shape[0] - len(group.questions)
        padding = ((0, missing), (0, 0), (0, 0))
        return visual, row._replace(
            input_ids=np.pad(row.input_ids, padding), input_mask=np.pad(row.input_mask, padding)
        )

    return read


def answer(
    groups: Sequence[Group], read: Read, generator: Generator
) -> Iterator[tuple[list[tuple[int, str, str]], list[str]]]:
    """Per batch: (row, prompt, answer) of its questions, and one line per question that cannot be
    asked. The next batch is decoded while the device works.
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


def _answer(ready: list[tuple[Group, Any, Row]], generator: Generator) -> list:
    # A short batch is filled up, for another size would be another program.
    full = (ready * generator.batch_rows)[: max(generator.batch_rows, len(ready))]
    visuals = [visual for _, visual, _ in full]
    frames = np.stack(visuals) if isinstance(visuals[0], np.ndarray) else visuals
    texts = generator.answer(frames, [row for *_, row in full])
    return [
        (question.doc_id, question.prompt, text)
        for (group, *_), answers in zip(ready, texts, strict=False)
        for question, text in zip(group.questions, answers, strict=False)
    ]
