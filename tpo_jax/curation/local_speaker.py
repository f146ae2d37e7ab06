"""A role played by a video language model on this machine's devices."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from tpo_jax.checkpoints.models import load_model
from tpo_jax.curation.speakers import Clip, Failure, Request, try_read
from tpo_jax.data import images, prompts
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.generation.generator import Generator, check_context
from tpo_jax.generation.sampling import Sampling
from tpo_jax.models.config import ModelConfig, visual_tokens
from tpo_jax.models.images import Pictures
from tpo_jax.parallel.mesh import make_mesh

# Rows of a batch have a power of two of questions, at most so many, and prompts are rounded up, so
# that few programs are compiled; requests are looked at so many batches at a time.
MOST_QUESTIONS, PROMPT_MULTIPLE, AHEAD = 8, 64, 8


class Model(NamedTuple):
    """Weights on the mesh and what belongs to them."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    precision: str


def load(checkpoint: str, dtype: str) -> Model:
    """A model directory, its weights split over all devices.

    Raises:
        InputError: what is wrong with the directory.
    """
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    loaded = load_model(checkpoint, mesh=mesh, dtype=dtype)
    tokenizer = load_tokenizer(loaded.tokenizer_directory, loaded.config.decoder.vocab_size)
    precision = "highest" if dtype == "float32" else "default"
    return Model(loaded.config, loaded.params, tokenizer, mesh, precision)


class _Row(NamedTuple):
    """Requests on one clip that are answered together."""

    requests: list[Request]
    visual: np.ndarray | Pictures  # uint8 [F, S, S, 3]; of text alone, no picture
    prompts: prompts.Row

    @property
    def num_frames(self) -> int:
        """F; 0 for text alone."""
        return len(self.visual) if isinstance(self.visual, np.ndarray) else 0


class LocalSpeaker:
    """Answers in batches of clips; requests on one clip share its encoding.

    A sampled reply (temperature above 0) has its clip for itself: its draw depends on the request
    alone.

    Args:
        model: of `load`.
        role: section of the role.
        batch_rows: clips at a time.
    """

    def __init__(self, model: Model, role: ConfigDict, batch_rows: int):
        self._model, self._sampled = model, role.temperature > 0
        self._generator = Generator(
            model.config,
            model.params,
            model.tokenizer,
            max_new_tokens=role.max_new_tokens,
            sampling=Sampling(temperature=role.temperature),
            batch_rows=batch_rows,
            mesh=model.mesh,
            question_multiple=PROMPT_MULTIPLE,
        )

    def replies(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """Replies in the order of the batches; the next batch is decoded meanwhile."""
        rest, size = iter(requests), self._generator.batch_rows
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            while True:
                window = list(islice(rest, size * AHEAD))
                following = pool.submit(self._read, window) if window else None
                if ahead is not None:
                    rows, failed = ahead.result()
                    yield from failed
                    for i in range(0, len(rows), size):
                        yield from self._answer(rows[i : i + size])
                if following is None:
                    return
                ahead = following

    def _read(self, window: list[Request]) -> tuple[list[_Row], list[tuple[Request, Failure]]]:
        groups: dict[tuple, list[Request]] = {}
        failed: list[tuple[Request, Failure]] = []
        for request in window:
            key = (request.clip, request.id if self._sampled else "")
            groups.setdefault(key, []).append(request)
        rows = []
        for (clip, _), asked in groups.items():
            for i in range(0, len(asked), MOST_QUESTIONS):
                part = asked[i : i + MOST_QUESTIONS]
                row = self._row(clip, part)
                if isinstance(row, Failure):
                    failed += [(request, row) for request in part]
                else:
                    rows.append(row)
        # Rows of one shape follow one another; a batch of several shapes is split by `_answer`.
        rows.sort(key=lambda row: (row.num_frames, row.prompts.input_ids.shape), reverse=True)
        return rows, failed

    def _row(self, clip: Clip | None, requests: list[Request]) -> _Row | Failure:
        config = self._model.config
        visual: np.ndarray | Pictures
        if clip is None:
            visual = images.read_pictures([], config)
            tokens: int | tuple[int, ...] = visual.tokens
        else:
            frames = try_read(clip)
            if isinstance(frames, Failure):
                return frames
            visual = images.preprocess(frames, config.tower)
            tokens = visual_tokens(config, len(frames))
        asked = [request.prompt for request in requests]
        try:
            row = prompts.build_prompts(self._model.tokenizer, asked, tokens, cut="video")
            check_context(config, row, video=clip is not None)
        except InputError as error:
            return Failure(str(error))
        return _Row(requests, visual, row)

    def _answer(self, rows: list[_Row]) -> Iterator[tuple[Request, str | Failure]]:
        for count in sorted({row.num_frames for row in rows}):
            alike = [row for row in rows if row.num_frames == count]
            questions = max(len(row.requests) for row in alike)
            texts = self._generate(alike, 1 << (questions - 1).bit_length())
            for row, replies in zip(alike, texts, strict=False):
                yield from zip(row.requests, replies, strict=False)

    def _generate(self, rows: list[_Row], questions: int) -> list[list[str]]:
        def padded(row: prompts.Row) -> prompts.Row:
            padding = ((0, questions - len(row.input_ids)), (0, 0), (0, 0))
            return row._replace(
                input_ids=np.pad(row.input_ids, padding),
                input_mask=np.pad(row.input_mask, padding),
            )

        # A short batch is filled up, for another size would be another program.
        full = (rows * self._generator.batch_rows)[: self._generator.batch_rows]
        frames = [row.visual for row in full if isinstance(row.visual, np.ndarray)]
        pictures = [row.visual for row in full if isinstance(row.visual, Pictures)]
        with jax.default_matmul_precision(self._model.precision):
            return self._generator.answer(
                np.stack(frames) if frames else pictures,
                [padded(row.prompts) for row in full],
                [row.requests[0].seed for row in full],
            )
