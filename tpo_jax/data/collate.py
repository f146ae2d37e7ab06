"""Collate rows and their frames or images into a batch of one shape."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from tpo_jax.data.phrases import phrase_mask
from tpo_jax.data.rows import CONTINUATION, Row
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures, round_views

# Frames uint8 `[n, *frame_shape]` of a video, or the images of a row.
Visual: TypeAlias = np.ndarray | Pictures


def visual_sizes(visuals: Sequence[Visual]) -> tuple[int, bool]:
    """Return `frames` and `images` of the `BatchShape` that holds these: all videos or all images.

    The number of images' views is rounded up, so that few shapes are compiled.
    """
    views = [len(v.views) for v in visuals if isinstance(v, Pictures)]
    if views:
        return round_views(max(views)), True
    return max(len(v) for v in visuals if isinstance(v, np.ndarray)), False


def collate(
    config: ModelConfig, rows: Sequence[Row | None], visuals: Sequence[Visual], shape: BatchShape
) -> Batch:
    """Put rows into a batch, each padded to its shape.

    Args:
        config: tells where visual tokens are before empty frames.
        rows: at most B; None, and every row beyond them, is an empty row. A row has at most Q
            questions; its padding may be longer than P or R, its tokens not.
        visuals: of every row; a video of fewer than F frames is padded with empty ones.
        shape: of the batch; `pair_index` and `reference_logps` are left for the caller to fill.
    """
    batch = shape.empty()
    arrays = {name: value for name, value in vars(batch).items() if value is not None}
    for b, (row, visual) in enumerate(zip(rows, visuals, strict=True)):
        for name, values in row.arrays().items() if row else ():
            if name not in arrays:
                continue
            if name in CONTINUATION:
                Q, A, R = (
                    min(sizes) for sizes in zip(values.shape, arrays[name].shape[1:], strict=True)
                )
                arrays[name][b, :Q, :A, :R] = values[:Q, :A, :R]
            else:
                P = min(len(values), shape.prefix)
                arrays[name][b, :P] = values[:P]
        if isinstance(visual, Pictures):
            arrays["frames"][b, : len(visual.views)] = visual.views
            arrays["patch_index"][b, : len(visual.patch_index)] = visual.patch_index
            arrays["patch_weight"][b, : len(visual.patch_weight)] = visual.patch_weight
            continue
        arrays["frames"][b, : len(visual)] = visual
        index = arrays["visual_index"][b]
        index[:] = config.padded_index(index, len(visual), shape.frames)
    if shape.phrases:
        arrays["phrase_mask"][:] = phrase_mask(arrays["target_ids"], arrays["target_mask"])
    return batch
