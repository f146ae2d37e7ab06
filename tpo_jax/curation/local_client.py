"""A client that runs a model directory on the devices of this process, or of all processes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from tpo_jax.checkpoints.models import load_model
from tpo_jax.curation.clients import Failure, Replies, Request
from tpo_jax.curation.config import Role
from tpo_jax.data.clips import Clip
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Generator
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.distributed import gather
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
    tokenizer = load_tokenizer(loaded.tokenizer_directory, loaded.config)
    precision = "highest" if dtype == "float32" else "default"
    return Model(loaded.config, loaded.params, tokenizer, mesh, precision)


class _Row(NamedTuple):
    """Requests on one clip that are answered together."""

    part: int  # which of the window's
    requests: Sequence[Request]
    visual: np.ndarray | Pictures  # uint8 [F, S, S, 3]; of text alone, no picture
    prompts: Row

    @property
    def num_frames(self) -> int:
        """F; 0 for text alone."""
        return len(self.visual) if isinstance(self.visual, np.ndarray) else 0


class LocalClient:
    """Answers in batches of clips; requests on one clip share its encoding.

    A sampled reply (temperature above 0) has its clip for itself: its draw depends on the request
    alone. With several processes all are given the same requests and get all replies; each reads
    its share of the clips and brings its share of every batch.

    Args:
        model: of `load`.
        role: section of the role.
        batch_rows: clips at a time, of all processes.
    """

    def __init__(self, model: Model, role: Role, batch_rows: int):
        self._model, self._sampled = model, role.temperature > 0
        self._processor = Processor(model.config, model.tokenizer)
        self._index, self._count = jax.process_index(), jax.process_count()
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

    def replies(self, requests: Iterable[Request]) -> Replies:
        """Replies in the order of the batches; the next batches are decoded meanwhile."""
        rest, size = iter(requests), self._generator.batch_rows * self._count
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            while True:
                window = list(islice(rest, size * AHEAD))
                following = pool.submit(self._read, window) if window else None
                if ahead is not None:
                    yield from self._answers(*ahead.result())
                if following is None:
                    return
                ahead = following

    def _read(self, window: list[Request]) -> tuple[list[list[Request]], list[_Row | Failure]]:
        """The window's parts, each of one clip, and this process's share of them, read."""
        groups: dict[tuple, list[Request]] = {}
        for request in window:
            key = (request.clip, request.id if self._sampled else "")
            groups.setdefault(key, []).append(request)
        parts = [
            asked[i : i + MOST_QUESTIONS]
            for asked in groups.values()
            for i in range(0, len(asked), MOST_QUESTIONS)
        ]
        own = range(self._index, len(parts), self._count)
        return parts, [self._row(i, parts[i]) for i in own]

    def _row(self, part: int, requests: Sequence[Request]) -> _Row | Failure:
        clip = requests[0].clip
        if clip is None:
            visual: np.ndarray | Pictures = self._processor.pictures([])
        else:
            frames = clip.read()
            if isinstance(frames, Failure):
                return frames
            visual = self._processor.resize(frames)
        try:
            return self._build(part, requests, visual, [request.prompt for request in requests])
        except InputError as error:
            return Failure(str(error))

    def _build(self, part: int, requests: Sequence[Request], visual, asked: list[str]) -> _Row:
        shown = Clip(visual, (), 0.0) if isinstance(visual, np.ndarray) else visual
        return _Row(part, requests, visual, self._processor.prompts(asked, shown))

    def _answers(self, parts: list[list[Request]], read: list[_Row | Failure]) -> Replies:
        own = range(self._index, len(parts), self._count)
        # Frames of every part, or why it has none, known to all.
        found: dict[int, int | str] = {}
        said = {
            i: r.reason if isinstance(r, Failure) else r.num_frames
            for i, r in zip(own, read, strict=True)
        }
        for theirs in gather(list(said.items())):
            found.update(theirs)
        for i, reason in sorted(found.items()):
            if isinstance(reason, str):
                yield from ((request, Failure(reason)) for request in parts[i])
        rows = [row for row in read if isinstance(row, _Row)]
        # Rows of one shape follow one another: few programs are compiled.
        rows.sort(key=lambda row: row.prompts.input_ids.shape, reverse=True)
        for count in sorted({n for n in found.values() if isinstance(n, int)}, reverse=True):
            alike = [row for row in rows if row.num_frames == count]
            most = max(Counter(i % self._count for i, n in found.items() if n == count).values())
            for start in range(0, most, self._generator.batch_rows):
                batch = alike[start : start + self._generator.batch_rows]
                texts = self._generate(batch, count)
                for part, replies in sorted(sum(gather(texts), [])):
                    yield from zip(parts[part], replies, strict=False)

    def _generate(self, rows: list[_Row], count: int) -> list[tuple[int, list[str]]]:
        """(part, replies) of rows of `count` frames; there may be none, if others have some."""
        if not rows:
            shape = self._model.config.frame_shape
            nothing = self._processor.pictures([])
            visual = np.zeros((count, *shape), np.uint8) if count else nothing
            filler = self._build(0, (), visual, ["?"])
        questions = max([len(row.requests) for row in rows], default=1)
        questions = 1 << (questions - 1).bit_length()

        def padded(row: Row) -> Row:
            padding = ((0, questions - len(row.input_ids)), (0, 0), (0, 0))
            return row._replace(
                input_ids=np.pad(row.input_ids, padding),
                input_mask=np.pad(row.input_mask, padding),
            )

        # A short batch is filled up, for another size would be another program.
        size = self._generator.batch_rows
        full = (rows * size)[:size] if rows else [filler] * size
        frames = [row.visual for row in full if isinstance(row.visual, np.ndarray)]
        pictures = [row.visual for row in full if isinstance(row.visual, Pictures)]
        with jax.default_matmul_precision(self._model.precision):
            texts = self._generator.answer(
                np.stack(frames) if frames else pictures,
                [padded(row.prompts) for row in full],
                [row.requests[0].seed if row.requests else 0 for row in full],
            )
        return [
            (row.part, replies[: len(row.requests)])
            for row, replies in zip(rows, texts, strict=False)
        ]
