"""A model of the server: rows from requests, answers to batches of rows."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tpo_jax.data.clips import Clip
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.families.template import Question, conversation_of
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference import model as inference
from tpo_jax.inference.generator import STREAM_STEPS, Answer, Decoding, round_up
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.attention import prefix_multiple

# Coarser than `generate`'s: a server sees all lengths, and compiles for each new one.
QUESTION_MULTIPLE = 64
WARM_UP_SECONDS = (9.0, 99.0, 999.0, 9999.0)
WARM_UP_PIXELS = (360, 640)  # height and width, which count where a model keeps the shape of videos


class Visual(NamedTuple):
    """A video or images as a model sees them.

    Attributes:
        key: Equal for equal visuals.
        frames: uint8 `[F, *frame_shape]` of a video, or images.
        times: Of a video's frames, seconds.
        duration: Of a video, seconds; 0 if its frames have no times.
    """

    key: tuple
    frames: np.ndarray | Pictures
    times: tuple[float, ...]
    duration: float

    @property
    def shape(self) -> tuple:
        """Return a key that is equal for visuals that can share a batch."""
        return self.frames.shape if isinstance(self.frames, np.ndarray) else ("images",)


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model and its name in the API."""

    name: str
    model: inference.Model
    max_new_tokens: int

    @property
    def config(self) -> ModelConfig:
        """Return the shapes and settings of the model."""
        return self.model.config

    def row(self, questions: Sequence[Question], visual: Visual) -> Row:
        """Return the tokenized questions about one visual, texts or conversations.

        Raises:
            InputError: The template cannot hold a question, or a prompt is too long.
        """
        for question in questions:
            self._check_length("\n".join(turn.content for turn in conversation_of(question)))
        processor = self.model.processor
        if not isinstance(visual.frames, np.ndarray):
            return processor.prompts(questions, visual.frames)
        # Without times the prompt has no time instruction.
        times = visual.times if visual.duration else ()
        return processor.prompts(questions, Clip(visual.frames, times, visual.duration))

    def _check_length(self, text: str) -> None:
        """Raise `InputError` for a text that is far too long, as its beginning tells.

        To tokenize all of it takes seconds and memory, in which the server answers nobody.
        """
        context = self.config.max_length
        characters = 16 * context
        while characters < len(text):
            # Twice, as a word that is cut may take more tokens than the whole word.
            if len(self.model.processor.encode(text[:characters])) > 2 * context:
                raise InputError(
                    f"the text takes more than {2 * context} tokens, the model's context is "
                    f"{context}; shorten the text"
                )
            characters *= 2

    def answers(
        self,
        visuals: Sequence[Visual],
        rows: Sequence[Row],
        seeds: Sequence[int],
        sampling: Sampling,
        new_tokens: np.ndarray,
        dropped: Callable[[], np.ndarray],
        stop: Sequence[Sequence[Sequence[str]]],
    ) -> Iterator[list[list[Answer]]]:
        """Yield the answers of a batch as they grow; arguments are those of `Generator.steps`."""
        decoding = Decoding(self.max_new_tokens, sampling, question_multiple=QUESTION_MULTIPLE)
        yield from self.model.generator(decoding).steps(
            [visual.frames for visual in visuals],
            rows,
            [(seed, 0) for seed in seeds],
            new_tokens=new_tokens,
            shape=new_tokens.shape,
            dropped=dropped,
            stop=stop,
        )


def warm_up(model: ServedModel, num_frames: int) -> None:
    """Compile the programs of a single question about a video of `num_frames` frames.

    A longer video's times are longer numbers, so that its prompt may have another shape: the
    programs are those of the usual lengths, seconds to hours.
    """
    # All frames: a model may show those of a long video smaller. They are one in memory.
    black = np.broadcast_to(np.uint8(0), (num_frames, *WARM_UP_PIXELS, 3))
    frames, shapes = model.model.processor.resize(black), set()
    for duration in WARM_UP_SECONDS:
        times = tuple(np.linspace(0, duration, num_frames).tolist())
        visual = Visual(("warm-up", duration), frames, times, duration)
        try:
            row = model.row(["What happens in the video?"], visual)
        except InputError:  # the model's context does not hold it
            continue
        length = prompt_length(row)
        if length not in shapes:
            shapes.add(length)
            # Steps after the first ones find a state laid out otherwise: one program more.
            limit = np.full((1, 1), min(3 * STREAM_STEPS, model.max_new_tokens), np.int32)
            steps = model.answers([visual], [row], [0], Sampling(), limit, _none, [[()]])
            for _ in steps:
                pass


def _none() -> np.ndarray:
    return np.zeros((1, 1), bool)


def prompt_length(row: Row) -> int:
    """Return the length P that a batch of rows like this one has."""
    return round_up(int(row.prefix_mask.sum()), prefix_multiple(None))


class Source(NamedTuple):
    """Where a model comes from; see `tpo_jax.load`."""

    checkpoint: Path
    tower: Path | None = None
    adapters: Path | None = None
    weights: str = ""


def load(source: Source, name: str, max_new_tokens: int, dtype: str) -> ServedModel:
    """Load a model; all devices share a row.

    Raises:
        InputError: what is wrong with its directories.
    """
    checkpoint, tower, adapters, weights = source
    model = inference.load(checkpoint, dtype=dtype, tower=tower, adapters=adapters, weights=weights)
    return ServedModel(name, model, max_new_tokens)


def names(directories: Sequence[str]) -> list[str]:
    """Return the models' API names: the last parts of their paths, as many as are unique."""
    paths = [Path(directory).absolute().parts for directory in directories]
    for n in range(1, max(map(len, paths)) + 1):
        short = ["/".join(path[-n:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    return short[:1]
