"""V-NIAH: one odd frame, the needle, among the frames of a long movie, and a question on it.

As LongVA's `vision_niah` does it: a needle is put before frame `int(depth * n)` of the first `n`
frames of the haystack, the question follows the frames, and the answer counts as found when the
model, given its tokens, predicts each of them by argmax (`vision_niah/eval_vision_niah.py` of
https://github.com/EvolvingLMMs-Lab/LongVA). Frames are pooled once, to 144 tokens for LongVA,
whatever the checkpoint calls its resampler.

Haystack and needles are encoded once for the whole grid, into one table of visual tokens. A cell is
a list of places in that table, so a needle is inserted without moving anything.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpo_jax import families
from tpo_jax.data.collate import collate
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.inference.generator import round_up
from tpo_jax.inference.model import Model
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.parallel.sharding import ROWS, WITHIN_ROW, batch_sharding, constrain
from tpo_jax.parallel.splash import LANES

_FRAMES_AT_ONCE = 8  # of every chip, through the tower
_TEXT_MULTIPLE = 16


class Needle(NamedTuple):
    """A frame and a question about it."""

    frame: np.ndarray  # uint8 [S, S, 3]
    prompt: np.ndarray  # int32 [n], the question and the template's turn to the answer
    answer: np.ndarray  # int32 [m], without an end


class Cell(NamedTuple):
    """One needle at one place."""

    frames: int  # of the haystack; the model sees one more
    depth: float  # 0: before the first frame, 1: after the last
    needle: int


def make_needle(processor: Processor, frame: np.ndarray, prompt: str, answer: str) -> Needle:
    """Make a needle, its texts tokenised one by one as in the original.

    Args:
        frame: uint8 `[S, S, 3]`.
        prompt: the question; it begins with the newline that separates it from the frames.

    Raises:
        InputError: an answer without a token.
    """
    if not (reply := processor.encode(answer)):
        raise InputError(f"the answer {answer!r} has no token")
    question = processor.encode(prompt) + processor.turn
    return Needle(frame, np.array(question, np.int32), np.array(reply, np.int32))


def depths(step: float) -> list[float]:
    """Return 0, `step`, … up to 1."""
    return [i * step for i in range(math.floor(1 / step + 1e-6) + 1)]


def places(cell: Cell, haystack: int) -> np.ndarray:
    """Return int64 `[cell.frames + 1]`: which frames of a table the cell shows.

    The table holds the `haystack` frames and the needles after them.
    """
    return np.insert(np.arange(cell.frames), int(cell.depth * cell.frames), haystack + cell.needle)


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
        frames: uint8 `[F, S, S, 3]`, the haystack.
        cells: lengths, depths and needles to test.
        batch_rows: cells at a time, rounded up to what the mesh asks for.

    Raises:
        ValueError: a cell that is longer than the haystack.
    """
    if longest := max((cell.frames for cell in cells if cell.frames > len(frames)), default=0):
        raise ValueError(f"a cell of {longest} frames, a haystack of {len(frames)}")
    if not cells:
        return
    used = frames[: max(cell.frames for cell in cells)]
    visual = encode(model, np.concatenate([used, [needle.frame for needle in needles]]))
    size, head = round_up(batch_rows, model.row_parts), model.processor.head

    def length(cell: Cell) -> int:
        return prefix_length(model.config, model.mesh, len(head), cell.frames)

    for P, same in itertools.groupby(sorted(cells, key=length), key=length):
        group = list(same)
        for start in range(0, len(group), size):
            part = group[start : start + size]
            # The last cell fills a short batch, for another size would be another program.
            filled = part + part[-1:] * (size - len(part))
            batch = make_batch(model.config, head, needles, filled, len(used), P)
            placed = jax.tree.map(functools.partial(_everywhere, model.mesh), batch)
            with model.computing():
                right = np.asarray(exact(model.config, model.params, visual, placed))
            yield [(cell, bool(r)) for cell, r in zip(part, right, strict=False)]


def _everywhere(mesh: jax.sharding.Mesh, rows: np.ndarray) -> jax.Array:
    """Place rows that every process has."""
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), rows.__getitem__)


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


def encode(model: Model, frames: np.ndarray) -> jax.Array:
    """Return visual tokens of frames one after the other, `[n, D]`, empty frames after them.

    A newline after the whole video (`newline=one_token`) is not part of it.

    Args:
        model: its frames are spread over all devices; the result is split by width within a row.
        frames: uint8 `[F, S, S, 3]`.
    """
    config, mesh = model.config, model.mesh
    each = min(_FRAMES_AT_ONCE * mesh.size, len(frames))
    each = -(-each // model.row_parts)  # of a row
    size, V = model.row_parts * each, config.tokens_per_frame
    chunks = -(-len(frames) // size)
    with model.computing():
        table = _table((chunks * size * V, config.decoder.width), model.dtype)
        for start in range(0, len(frames), size):
            part = np.zeros((size, *frames.shape[1:]), np.uint8)
            given = frames[start : start + size]
            part[: len(given)] = given
            placed = _everywhere(mesh, part.reshape(model.row_parts, each, *frames.shape[1:]))
            table = fill(config, model.params, table, placed, start * V)
    return table


@functools.partial(jax.jit, static_argnums=(0, 1))
def _table(shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    return constrain(jnp.zeros(shape, dtype), None, WITHIN_ROW)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="table")
def fill(
    config: ModelConfig, params: dict, table: jax.Array, frames: jax.Array, start: int
) -> jax.Array:
    """Return the table with the tokens of uint8 `[B, m, S, S, 3]` from row `start` on."""
    x = families.bind(config, params).encode_frames(frames)
    x = x[:, : frames.shape[1] * config.tokens_per_frame].reshape(-1, x.shape[-1])
    table = jax.lax.dynamic_update_slice_in_dim(table, x.astype(table.dtype), start, 0)
    return constrain(table, None, WITHIN_ROW)


def prefix_length(config: ModelConfig, mesh: jax.sharding.Mesh, head: int, frames: int) -> int:
    """Return P of a cell: `head` tokens of text and the frames, rounded up for the mesh."""
    context = mesh.shape["context"]
    # Zig-zag order halves every chip's part; the TPU kernel takes blocks of `LANES`.
    unit = LANES * context * (2 if context > 1 else 1)
    return -(-(head + (frames + 1) * config.tokens_per_frame) // unit) * unit


def make_batch(
    config: ModelConfig,
    head: Sequence[int],
    needles: Sequence[Needle],
    cells: Sequence[Cell],
    haystack: int,
    P: int,
) -> Batch:
    """Return what `exact` reads, with `Q = A = 1` and no frames: they are in the table.

    Args:
        head: token ids before the frames.
        needles: texts; all decide on R, so that it is the same for all cells.
        cells: one per row.
        haystack: frames in the table before the needles.
        P: see `prefix_length`.
    """
    B, V = len(cells), config.tokens_per_frame
    longest = max(len(needle.prompt) + len(needle.answer) - 1 for needle in needles)
    R = -(-longest // _TEXT_MULTIPLE) * _TEXT_MULTIPLE
    rows = []
    for cell in cells:
        needle = needles[cell.needle]
        visual = (places(cell, haystack)[:, None] * V + np.arange(V)).reshape(-1)
        n, text = len(head) + len(visual), np.concatenate([needle.prompt, needle.answer])
        answer = np.arange(len(text) - 1) >= len(needle.prompt) - 1
        rows.append(
            Row(
                prefix_ids=np.append(head, np.zeros(len(visual))).astype(np.int32),
                prefix_mask=np.ones(n, bool),
                visual_index=np.append(np.full(len(head), -1), visual).astype(np.int32),
                input_ids=text[None, None, :-1],
                input_mask=np.ones((1, 1, len(text) - 1), bool),
                target_ids=np.where(answer, text[1:], 0)[None, None],
                target_mask=answer[None, None],
            )
        )
    shape = BatchShape(
        rows=B,
        prefix=P,
        questions=1,
        answers=1,
        response=R,
        frames=0,
        frame_shape=config.frame_shape,
    )
    return collate(config, rows, [np.zeros((0, *config.frame_shape), np.uint8)] * B, shape)


@functools.partial(jax.jit, static_argnames=("config", "back_end"))
def exact(
    config: ModelConfig, params: dict, visual: jax.Array, batch: Batch, *, back_end: str = "auto"
) -> jax.Array:
    """Return bool `[B]`: whether each token of a row's answer is the argmax of its logits.

    Args:
        params: in the compute dtype.
        visual: `[n, D]` of `encode`.
        batch: of `make_batch`.
        back_end: of `parallel.attention.prefix_attention`.
    """
    model = families.bind(config, params)
    B, Q, A, R = batch.input_ids.shape
    ids, mask, targets, labelled = (
        x.reshape(B, Q * A, R)
        for x in (batch.input_ids, batch.input_mask, batch.target_ids, batch.target_mask)
    )
    visual = jnp.broadcast_to(visual, (B, *visual.shape))
    visual = constrain(visual, ROWS, None, WITHIN_ROW)
    x = model.embed_prefix(batch.prefix_ids, visual, batch.visual_index)
    y = model.decoder.embed(ids)
    prefix = PrefixStream(x, batch.prefix_mask)
    hidden = model.decoder.row(prefix, y, mask, back_end=back_end)
    right = (model.next_tokens(hidden) == targets) | ~labelled
    return constrain(right.all(axis=(1, 2)), None)
