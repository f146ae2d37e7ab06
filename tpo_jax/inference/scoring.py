"""Summed log-probabilities of both answers of a pair, many pairs at a time."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from tpo_jax import families
from tpo_jax.data.collate import collate, visual_sizes
from tpo_jax.data.pairs import Pair, read_pairs
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError, note
from tpo_jax.inference.generator import round_up
from tpo_jax.io.paths import check_folder
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.attention import prefix_multiple
from tpo_jax.parallel.programs import LayerwiseProgram
from tpo_jax.parallel.sharding import to_global

if TYPE_CHECKING:
    from tpo_jax.inference.model import Model

# Answers are padded to a multiple of it, so that few shapes are compiled; the head is applied to
# this many positions at a time.
RESPONSE_MULTIPLE = 16


class FrameSource(NamedTuple):
    """Where the videos and images of pairs lie, and which frames of a video are seen."""

    folder: Path  # or a directory of shards
    num_frames: int
    rule: str  # one of `video.sampling.RULES`


@dataclasses.dataclass(frozen=True)
class Score:
    """Log-probabilities of a pair's answers, summed over their tokens; for a pair of two videos,
    those of its one answer on each.

    An answer's tokens are its own, `<|im_end|>` and the newline after it; with the prompt style
    `dpo_trainer` also the six tokens of the template that the original trainer labels.
    """

    id: str
    chosen_logp: float
    rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int


class PairRow(NamedTuple):
    """One pair, ready for a batch."""

    texts: Row
    visual: np.ndarray | Pictures  # frames uint8 [n, *frame_shape], or images


@functools.partial(LayerwiseProgram, static_argnames="config")
def score_batch(config: ModelConfig, params: dict, batch: Batch) -> jax.Array:
    """Return float32 `[B, 2]`: summed log-probabilities of the answers."""
    logps = families.bind(config, params).token_logps(batch, chunk=RESPONSE_MULTIPLE)
    return logps.sum(axis=(1, 3), dtype=np.float32)


def read_list(path: Path, videos: Path) -> list[Pair]:
    """Read a list of pairs: two answers on a video, on images or on text alone, or one answer on
    two videos.

    Args:
        path: Of the list.
        videos: Folder of the pairs' videos and images, for absolute paths.

    Raises:
        InputError: no such folder, or the first record that is not such a pair, and how many more
            there are.
    """
    check_folder("--videos", videos)
    pairs, rejections = read_pairs(path, stills=True, videos=videos)
    if rejections:
        more = f" (and {len(rejections) - 1} more)" if len(rejections) > 1 else ""
        raise InputError(f"{rejections[0].where}: {rejections[0].reason}{more}")
    return pairs


def read_row(processor: Processor, pair: Pair, source: FrameSource) -> PairRow:
    """Read one pair as a row of a batch, `Q` = 1.

    Raises:
        InputError: the video, an image or the texts; the message begins with the place of the pair.
    """
    answers = pair.answers
    try:
        if pair.video:
            clip = processor.video(source.folder / pair.video, source.num_frames, source.rule)
            return PairRow(processor.scored(pair.asked, answers, clip), clip.frames)
        pictures = processor.pictures([source.folder / image for image in pair.images])
        return PairRow(processor.scored(pair.asked, answers, pictures), pictures)
    except InputError as error:
        raise InputError(f"{pair.where}: {error}") from error


def score(
    model: "Model", pairs: Sequence[Pair], source: FrameSource, batch_size: int
) -> list[Score]:
    """Score every pair; see `Model.score`."""
    if alone := sum(not (pair.video or pair.images) for pair in pairs):
        note(f"{alone} of {len(pairs)} pairs have no video and no image: scored on text alone")
    # A pair of two videos is scored on both of them.
    sides = [
        [
            pair,
            *([dataclasses.replace(pair, video=pair.rejected_video)] * bool(pair.rejected_video)),
        ]
        for pair in pairs
    ]
    every = [pair for both in sides for pair in both]
    found: dict[int, Score] = {}
    # Either all rows of a batch are on videos, or none is.
    for on_video in (True, False):
        numbers = [i for i, pair in enumerate(every) if bool(pair.video) == on_video]
        part = [every[i] for i in numbers]
        found |= zip(numbers, _scores(model, part, source, batch_size), strict=True)
    scores = iter([found[i] for i in range(len(every))])
    return [_joined([next(scores) for _ in both]) for both in sides]


def _joined(scores: Sequence[Score]) -> Score:
    """Return the score of a pair; for one of two videos, the answer on the rejected video counts as
    the rejected answer.
    """
    first, last = scores[0], scores[-1]
    return dataclasses.replace(
        first, rejected_logp=last.rejected_logp, rejected_tokens=last.rejected_tokens
    )


def _scores(
    model: "Model", pairs: Sequence[Pair], source: FrameSource, batch_size: int
) -> Iterator[Score]:
    """Yield the results in order; the next videos are read while the device computes."""
    size = round_up(batch_size, model.row_parts)
    read = functools.partial(read_row, model.processor, source=source)
    running: list[tuple[Sequence[Pair], jax.Array, list[np.ndarray]]] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            rows = list(pool.map(read, part))
            with model.computing():
                batch = to_global(_batch(model, rows, size, source.num_frames), model.mesh)
                logps = score_batch(model.config, model.params, batch)
            running.append((part, logps, [row.texts.target_mask.sum(axis=(0, 2)) for row in rows]))
            if len(running) > 1:
                yield from _results(*running.pop(0))
        for waiting in running:
            yield from _results(*waiting)


def _batch(model: "Model", rows: Sequence[PairRow], size: int, num_frames: int) -> Batch:
    """Collate `size` rows, all on videos or none; rows beyond those given are empty."""
    visuals = [row.visual for row in rows]
    frames, images = visual_sizes(visuals)
    shape = BatchShape(
        rows=size,
        prefix=round_up(
            max(row.texts.prefix_ids.size for row in rows), prefix_multiple(model.mesh, zigzag=True)
        ),
        questions=1,
        answers=2,
        response=round_up(max(row.texts.input_ids.shape[-1] for row in rows), RESPONSE_MULTIPLE),
        frames=frames if images else model.config.batch_frames(num_frames),
        frame_shape=model.config.frame_shape,
        images=images,
        prefix_labels=rows[0].texts.target_at is not None,
    )
    batch = collate(model.config, [row.texts for row in rows], visuals, shape)
    model.padding.look(batch)
    return batch


def _results(
    pairs: Sequence[Pair], sums: jax.Array, counts: Sequence[np.ndarray]
) -> Iterator[Score]:
    for pair, logps, tokens in zip(pairs, np.asarray(sums).tolist(), counts, strict=False):
        yield Score(pair.id, *logps, *tokens.tolist())
