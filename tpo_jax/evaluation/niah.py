"""V-NIAH: one odd frame, the needle, among the frames of a long movie, and a question on it.

As LongVA's `vision_niah` does it: a needle is put before frame `int(depth * n)` of the first `n`
frames of the haystack, the question follows the frames, and the answer counts as found when the
model, given its tokens, predicts each of them by argmax (`vision_niah/eval_vision_niah.py` of
https://github.com/EvolvingLMMs-Lab/LongVA). Frames are pooled once, to 144 tokens for LongVA,
whatever the checkpoint calls its resampler.

Models that encode every frame by itself have one table of visual tokens for the whole grid
(`niah_tables.py`); others see a video in every cell (`niah_videos.py`).
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpo_jax import families
from tpo_jax.evaluation.niah_cells import Cell, Needle
from tpo_jax.evaluation.niah_tables import everywhere, table_batches
from tpo_jax.evaluation.niah_videos import video_batches
from tpo_jax.inference.generator import round_up
from tpo_jax.inference.model import Model
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.parallel.sharding import ROWS, WITHIN_ROW, constrain


def grid(
    model: Model,
    frames: np.ndarray,
    needles: Sequence[Needle],
    lengths: Sequence[int],
    depths: Sequence[float],
    batch_rows: int = 1,
) -> np.ndarray:
    """Return which needles are found where: bool `[lengths, depths, needles]`.

    Arguments are those of `find`; `lengths` are in frames.
    """
    product = itertools.product(lengths, depths, range(len(needles)))
    cells = [Cell(*values) for values in product]
    parts = find(model, frames, needles, cells, batch_rows)
    found = dict(result for part in parts for result in part)
    values = [found[cell] for cell in cells]
    return np.array(values).reshape(len(lengths), len(depths), len(needles))


def find(
    model: Model,
    frames: np.ndarray,
    needles: Sequence[Needle],
    cells: Sequence[Cell],
    batch_rows: int = 1,
) -> Iterator[list[tuple[Cell, bool]]]:
    """Yield whether the model finds its needle in every cell, batch by batch, short cells first.

    The model's context is not a limit: the test is there to go beyond it.

    Args:
        model: the loaded model. A cell is split over the mesh axes `tensor` and `context`, cells
            over `data` and `fsdp`. Every process gives the same arguments and gets the same
            results.
        frames: uint8 `[F, S, S, 3]`, the haystack; `[F, height, width, 3]` where cells are videos.
        cells: lengths, depths and needles to test.
        batch_rows: cells at a time, rounded up to what the mesh asks for.

    Raises:
        ValueError: a cell that is longer than the haystack.
    """
    if longest := max((cell.frames for cell in cells if cell.frames > len(frames)), default=0):
        raise ValueError(f"a cell of {longest} frames, a haystack of {len(frames)}")
    if not cells:
        return
    size = round_up(batch_rows, model.row_parts)
    batches = table_batches if families.of(model.config).independent_frames else video_batches
    for part, visual, batch in batches(model, frames, needles, cells, size):
        placed = jax.tree.map(functools.partial(everywhere, model.mesh), batch)
        with model.computing():
            right = np.asarray(exact(model.config, model.params, visual, placed))
        yield [(cell, bool(r)) for cell, r in zip(part, right, strict=False)]


def summary(found: np.ndarray, lengths: Sequence[int], depths: Sequence[float]) -> dict[str, Any]:
    """Return the share of needles found: over all cells (`score`), by length, depth and needle.

    Args:
        found: bool `[lengths, depths, needles]`.
        lengths: in frames.
        depths: 0 to 1.
    """
    axes: list[tuple[str, Sequence[float]]] = [("frames", lengths), ("depth", depths)]
    axes.append(("needle", range(found.shape[2])))
    shares: dict[str, Any] = {"score": float(found.mean()), "cells": found.size}
    for axis, (name, values) in enumerate(axes):
        means = found.mean(axis=tuple({0, 1, 2} - {axis})).tolist()
        shares[name] = {f"{v:g}": mean for v, mean in zip(values, means, strict=True)}
    return shares


@functools.partial(jax.jit, static_argnames=("config", "back_end"))
def exact(
    config: ModelConfig,
    params: dict,
    visual: jax.Array | None,
    batch: Batch,
    *,
    back_end: str = "auto",
) -> jax.Array:
    """Return bool `[B]`: whether each token of a row's answer is the argmax of its logits.

    Args:
        params: in the compute dtype.
        visual: `[n, D]`, the tokens that the batch refers to; None: its own frames.
        back_end: of `parallel.attention.prefix_attention`.
    """
    model = families.bind(config, params)
    B, Q, A, R = batch.input_ids.shape
    ids, mask, targets, labelled = (
        x.reshape(B, Q * A, R)
        for x in (batch.input_ids, batch.input_mask, batch.target_ids, batch.target_mask)
    )
    if visual is None:
        prefix = model.prefix(batch)
    else:
        visual = jnp.broadcast_to(visual, (B, *visual.shape))
        visual = constrain(visual, ROWS, None, WITHIN_ROW)
        x = model.embed_prefix(batch.prefix_ids, visual, batch.visual_index)
        prefix = PrefixStream(x, batch.prefix_mask)
    y = model.decoder.embed(ids)
    hidden = model.decoder.row(prefix, y, mask, back_end=back_end)
    right = (model.next_tokens(hidden) == targets) | ~labelled
    return constrain(right.all(axis=(1, 2)), None)
