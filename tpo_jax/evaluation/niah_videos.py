"""Cells of models that see a video as a whole: a video each, with the needle among its frames."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

from tpo_jax.data.clips import Clip
from tpo_jax.data.collate import collate
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.evaluation.niah_cells import Cell, Needle, by_length, filled, response_length
from tpo_jax.inference.generator import round_up
from tpo_jax.inference.model import Model
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.attention import prefix_multiple

_FILTER = Image.Resampling.BICUBIC
_GREY = (127, 127, 127)


def video_batches(
    model: Model,
    frames: np.ndarray,
    needles: Sequence[Needle],
    cells: Sequence[Cell],
    size: int,
) -> Iterator[tuple[Sequence[Cell], None, Batch]]:
    """Yield cells, None and the cells' batch, short cells first.

    Args:
        frames: uint8 `[F, height, width, 3]`, the haystack.
        size: cells of a batch.
    """
    config, processor = model.config, model.processor
    R = response_length(needles)
    for count, part in by_length(cells, lambda cell: cell.frames, size):
        rows, videos = [], []
        for cell in filled(part, size):
            clip = shown(processor, frames, needles[cell.needle], cell)
            rows.append(asked(processor, needles[cell.needle], clip))
            videos.append(clip.frames)
        longest = max(row.prefix_ids.size for row in rows)
        shape = BatchShape(
            rows=size,
            prefix=round_up(longest, prefix_multiple(model.mesh, zigzag=True)),
            questions=1,
            answers=1,
            response=max(R, *(row.input_ids.shape[-1] for row in rows)),
            frames=config.batch_frames(count + 1),
            frame_shape=config.frame_shape,
        )
        yield part, None, collate(config, rows, videos, shape)


def shown(processor: Processor, frames: np.ndarray, needle: Needle, cell: Cell) -> Clip:
    """Return the video of a cell, a frame a second; the needle is as large as the others, with
    grey around it.
    """
    height, width = frames.shape[1:3]
    odd = ImageOps.pad(Image.fromarray(needle.frame), (width, height), _FILTER, color=_GREY)
    place = int(cell.depth * cell.frames)
    video = np.insert(frames[: cell.frames], place, np.asarray(odd), axis=0)
    times = [float(i) for i in range(len(video))]
    return Clip(processor.resize(video, rate=1.0), times, float(len(video)))


def asked(processor: Processor, needle: Needle, clip: Clip) -> Row:
    """Return the row of a cell; the answer's tokens are labelled, its end-of-turn token is not."""
    question, answer = needle.texts
    row = processor.answers([question.strip()], [[answer]], clip)
    number = np.cumsum(row.target_mask, axis=-1)
    return row._replace(target_mask=row.target_mask & (number <= len(needle.answer)))


def reduced(frames: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Return frames uint8 `[n, height, width, 3]` with no more pixels than a frame of a batch."""
    height, width = frames.shape[1:3]
    scale = min(1.0, (np.prod(config.frame_shape) / frames[0].size) ** 0.5)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    if size == (width, height):
        return frames
    return np.stack([np.asarray(Image.fromarray(x).resize(size, _FILTER)) for x in frames])
