"""A model that is served: what it sees of a request, and its batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tpo_jax.data.clips import Clip
from tpo_jax.data.rows import Row
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference import model as inference
from tpo_jax.inference.generator import Answer, Decoding
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures

# Coarser than `generate`'s: a server sees every length, and each new one is compiled for.
QUESTION_MULTIPLE = 64


class Visual(NamedTuple):
    """What a model is shown. Equal keys are equal visuals."""

    key: tuple
    frames: np.ndarray | Pictures  # uint8 [F, S, S, 3] of a video, or images
    times: tuple[float, ...]  # of a video's frames, seconds
    duration: float

    @property
    def shape(self) -> tuple:
        """Visuals of equal shape run in one batch."""
        return self.frames.shape if isinstance(self.frames, np.ndarray) else ("images",)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """One checkpoint, loaded."""

    name: str
    model: inference.Model
    max_new_tokens: int

    @property
    def config(self) -> ModelConfig:
        """Return the shapes and settings of the model."""
        return self.model.config

    def row(self, questions: Sequence[str], visual: Visual) -> Row:
        """The questions about one visual.

        Raises:
            InputError: a question the template has no room for, or a prompt too long.
        """
        processor = self.model.processor
        if not isinstance(visual.frames, np.ndarray):
            return processor.prompts(questions, visual.frames)
        questions = [processor.without_placeholder(question) for question in questions]
        # Frames whose times are unknown have no sentence on them.
        times = visual.times if visual.duration else ()
        return processor.prompts(questions, Clip(visual.frames, times, visual.duration))

    def answers(
        self,
        visuals: Sequence[Visual],
        rows: Sequence[Row],
        seeds: Sequence[int],
        sampling: Sampling,
        new_tokens: np.ndarray,
        dropped: Callable[[], np.ndarray],
    ) -> Iterator[list[list[Answer]]]:
        """Answers of a batch as they grow; see `Generator.steps`. `new_tokens` has its shape."""
        decoding = Decoding(self.max_new_tokens, sampling, question_multiple=QUESTION_MULTIPLE)
        yield from self.model.generator(decoding).steps(
            [visual.frames for visual in visuals],
            rows,
            [(seed, 0) for seed in seeds],
            new_tokens=new_tokens,
            shape=new_tokens.shape,
            dropped=dropped,
        )


def load(directory: str | Path, name: str, max_new_tokens: int, dtype: str) -> Model:
    """Load a model directory; all devices share a row.

    Raises:
        InputError: what is wrong with it.
    """
    return Model(name, inference.load(directory, dtype=dtype), max_new_tokens)


def names(directories: Sequence[str]) -> list[str]:
    """What clients call the models: the last parts of their paths, as many as tell them apart."""
    paths = [Path(directory).absolute().parts for directory in directories]
    for n in range(1, max(map(len, paths)) + 1):
        short = ["/".join(path[-n:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    return short[:1]
