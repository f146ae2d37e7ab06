"""A client that runs a model directory on the devices of this process, or of all processes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np

from tpo_jax.curation.clients import Failure, Replies, Request
from tpo_jax.curation.config import Role
from tpo_jax.data.clips import Clip
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import Model
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.distributed import gather

# Rows of a batch have a power of two of questions, at most so many, and prompts are rounded up, so
# that few programs are compiled; requests are looked at so many batches at a time.
MOST_QUESTIONS, PROMPT_MULTIPLE, AHEAD = 8, 64, 8


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
        model: loaded with rows split over all devices.
        role: section of the role.
        batch_rows: clips at a time, of all processes.
    """

    def __init__(self, model: Model, role: Role, batch_rows: int) -> None:
        self._processor, self._sampled = model.processor, role.temperature > 0
        self._index, self._count = jax.process_index(), jax.process_count()
        decoding = Decoding(
            role.max_new_tokens,
            Sampling(temperature=role.temperature),
            batch_rows=batch_rows,
            question_multiple=PROMPT_MULTIPLE,
        )
        self._generator = model.generator(decoding)

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
            shown = Clip(visual, (), 0.0) if isinstance(visual, np.ndarray) else visual
            asked = [request.prompt for request in requests]
            return _Row(part, requests, visual, self._processor.prompts(asked, shown))
        except InputError as error:
            return Failure(str(error))

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
                texts = self._generate(batch)
                for part, replies in sorted(sum(gather(texts), [])):
                    yield from zip(parts[part], replies, strict=False)

    def _generate(self, rows: list[_Row]) -> list[tuple[int, list[str]]]:
        """Return (part, replies) of this process's rows; there may be none, if others have some."""
        questions = max([len(row.requests) for row in rows], default=1)
        shape = self._generator.batch_rows, 1 << (questions - 1).bit_length()
        visuals, prompts = [row.visual for row in rows], [row.prompts for row in rows]
        seeds = [row.requests[0].seed for row in rows]
        texts = self._generator.answer(visuals, prompts, seeds, shape)
        return [(row.part, replies) for row, replies in zip(rows, texts, strict=True)]
