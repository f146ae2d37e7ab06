"""A model that is served: what it sees of a request, and its batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from tpo_jax.checkpoints.models import load_model
from tpo_jax.data import prompts
from tpo_jax.data.clips import Clip
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Answer, Generator
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
    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    max_new_tokens: int
    mesh: jax.sharding.Mesh | None = None

    def row(self, questions: Sequence[str], visual: Visual) -> Row:
        """The questions about one visual.

        Raises:
            InputError: a question the template has no room for, or a prompt too long.
        """
        processor = Processor(self.config, self.tokenizer)
        if not isinstance(visual.frames, np.ndarray):
            return processor.prompts(questions, visual.frames)
        questions = [prompts.strip_placeholder(question) for question in questions]
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
        generator = Generator(
            self.config,
            self.params,
            self.tokenizer,
            max_new_tokens=self.max_new_tokens,
            sampling=sampling,
            mesh=self.mesh,
            question_multiple=QUESTION_MULTIPLE,
        )
        shown: Any = [visual.frames for visual in visuals]
        frames = np.stack(shown) if isinstance(shown[0], np.ndarray) else shown
        draws = [(seed, 0) for seed in seeds]
        B, M = new_tokens.shape
        precision = "highest" if self._dtype == jnp.float32 else "default"
        with jax.default_matmul_precision(precision):
            yield from generator.steps(
                frames, rows, draws, new_tokens=new_tokens, shape=(B, M), dropped=dropped
            )

    @property
    def _dtype(self):
        return jax.tree.leaves(self.params)[0].dtype


def load(
    directory: str | Path,
    name: str,
    max_new_tokens: int,
    dtype: str,
    mesh: jax.sharding.Mesh | None = None,
) -> Model:
    """A model directory of either layout. Raises `InputError` for what is wrong with it."""
    loaded = load_model(directory, mesh=mesh, dtype=dtype)
    tokenizer = load_tokenizer(directory, loaded.config)
    return Model(name, loaded.config, loaded.params, tokenizer, max_new_tokens, mesh)


def names(directories: Sequence[str]) -> list[str]:
    """What clients call the models: the last parts of their paths, as many as tell them apart."""
    paths = [Path(directory).absolute().parts for directory in directories]
    for n in range(1, max(map(len, paths)) + 1):
        short = ["/".join(path[-n:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    return short[:1]
