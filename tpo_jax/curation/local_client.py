"""A client that runs a loaded model on the devices of this process, or of all processes."""

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
from tpo_jax.video.sampling import rate_of

# Questions per row are rounded up to a power of two and prompts to a multiple, so that few programs
# are compiled.
MOST_QUESTIONS, PROMPT_MULTIPLE = 8, 64
WINDOW = 8  # batches of requests that are grouped by clip together


class _Row(NamedTuple):
    """A batch row: requests about one clip.

    Attributes:
        group: Index of the requests in their window.
        requests: At most `MOST_QUESTIONS`.
        visual: Frames uint8 `[F, *frame_shape]`; no pictures for text alone.
        prompts: Tokenized prompts.
    """

    group: int
    requests: Sequence[Request]
    visual: np.ndarray | Pictures
    prompts: Row

    @property
    def num_frames(self) -> int:
        """Return F; 0 for text alone."""
        return len(self.visual) if isinstance(self.visual, np.ndarray) else 0


class LocalClient:
    """Answers in batches of clips; requests about one clip share its encoding.

    A sampled request (temperature above 0) never shares a batch row, so its draw depends on the
    request alone. With several processes all must be given the same requests and get all replies;
    each decodes its share of the clips and brings its rows of every batch.

    Args:
        model: Loaded with rows split over all devices.
        role: Section of the role.
        batch_rows: Clips per batch, over all processes.
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
        """Yield replies in the order of the batches; the next window is decoded meanwhile."""
        rest, size = iter(requests), self._generator.batch_rows * self._count
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            while True:
                window = list(islice(rest, size * WINDOW))
                following = pool.submit(self._read, window) if window else None
                if ahead is not None:
                    yield from self._answers(*ahead.result())
                if following is None:
                    return
                ahead = following

    def _read(self, window: list[Request]) -> tuple[list[list[Request]], list[_Row | Failure]]:
        """Return the requests grouped by clip, and the rows of this process's share of them."""
        by_clip: dict[tuple, list[Request]] = {}
        for request in window:
            key = (request.clip, request.id if self._sampled else "")
            by_clip.setdefault(key, []).append(request)
        groups = [
            asked[i : i + MOST_QUESTIONS]
            for asked in by_clip.values()
            for i in range(0, len(asked), MOST_QUESTIONS)
        ]
        own = range(self._index, len(groups), self._count)
        return groups, [self._row(i, groups[i]) for i in own]

    def _row(self, group: int, requests: Sequence[Request]) -> _Row | Failure:
        clip, processor = requests[0].clip, self._processor
        asked = [request.prompt for request in requests]
        try:
            if clip is None:
                nothing = processor.pictures([])
                return _Row(group, requests, nothing, processor.prompts(asked, nothing))
            sample = clip.read()
            if isinstance(sample, Failure):
                return sample
            rate = rate_of(sample.timestamps, sample.duration)
            frames = processor.resize(sample.frames, rate=rate)
            shown = Clip(frames, sample.timestamps.tolist(), sample.duration)
            return _Row(group, requests, frames, processor.prompts(asked, shown))
        except InputError as error:
            return Failure(str(error))

    def _answers(self, groups: list[list[Request]], read: list[_Row | Failure]) -> Replies:
        """Yield the replies to all groups, of which this process has read its share."""
        own = range(self._index, len(groups), self._count)
        known = {
            i: r.reason if isinstance(r, Failure) else r.num_frames
            for i, r in zip(own, read, strict=True)
        }
        # Of all processes: the number of frames of every group, or why it has none.
        found: dict[int, int | str] = {}
        for theirs in gather(list(known.items())):
            found.update(theirs)
        for i, reason in sorted(found.items()):
            if isinstance(reason, str):
                yield from ((request, Failure(reason)) for request in groups[i])
        rows = [row for row in read if isinstance(row, _Row)]
        # Rows of one shape follow one another, so that few programs are compiled.
        rows.sort(key=lambda row: row.prompts.input_ids.shape, reverse=True)
        for count in sorted({n for n in found.values() if isinstance(n, int)}, reverse=True):
            alike = [row for row in rows if row.num_frames == count]
            most = max(Counter(i % self._count for i, n in found.items() if n == count).values())
            for start in range(0, most, self._generator.batch_rows):
                batch = alike[start : start + self._generator.batch_rows]
                texts = self._generate(batch)
                for group, replies in sorted(sum(gather(texts), [])):
                    yield from zip(groups[group], replies, strict=True)

    def _generate(self, rows: list[_Row]) -> list[tuple[int, list[str]]]:
        """Return (group, replies) of this process's rows, of which there may be none."""
        questions = max(gather(max([len(row.requests) for row in rows], default=1)))
        shape = self._generator.batch_rows, 1 << (questions - 1).bit_length()
        visuals, prompts = [row.visual for row in rows], [row.prompts for row in rows]
        seeds = [row.requests[0].seed for row in rows]
        texts = self._generator.answer(visuals, prompts, seeds, shape)
        return [(row.group, replies) for row, replies in zip(rows, texts, strict=True)]
