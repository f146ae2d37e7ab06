"""Cells of models that encode every frame by itself: places in one table of visual tokens.

Haystack and needles are encoded once for the whole grid, and a needle is inserted without moving
anything.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tpo_jax import families
from tpo_jax.data.collate import collate
from tpo_jax.data.rows import Row
from tpo_jax.evaluation.niah_cells import Cell, Needle, by_length, filled, response_length
from tpo_jax.inference.generator import round_up
from tpo_jax.inference.model import Model
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.sharding import WITHIN_ROW, batch_sharding, constrain
from tpo_jax.parallel.splash import LANES

_FRAMES_AT_ONCE = 8  # of every chip, through the tower


def table_batches(
    model: Model,
    frames: np.ndarray,
    needles: Sequence[Needle],
    cells: Sequence[Cell],
    size: int,
) -> Iterator[tuple[Sequence[Cell], jax.Array, Batch]]:
    """Yield cells, the table of visual tokens and the cells' batch, short cells first.

    A short batch is filled up with its last cell: another size would need another program.

    Args:
        size: cells of a batch.
    """
    used = frames[: max(cell.frames for cell in cells)]
    visual = encode(model, np.concatenate([used, [needle.frame for needle in needles]]))
    head = model.processor.head

    def length(cell: Cell) -> int:
        return prefix_length(model.config, model.mesh, len(head), cell.frames)

    for P, part in by_length(cells, length, size):
        yield (
            part,
            visual,
            make_batch(model.config, head, needles, filled(part, size), len(used), P),
        )


def everywhere(mesh: jax.sharding.Mesh, rows: np.ndarray) -> jax.Array:
    """Shard over the mesh the rows `[B, ...]` that every process holds in full."""
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), rows.__getitem__)


def places(cell: Cell, haystack: int) -> np.ndarray:
    """Return int64 `[cell.frames + 1]`: which frames of a table the cell shows.

    The table holds the `haystack` frames and the needles after them.
    """
    return np.insert(np.arange(cell.frames), int(cell.depth * cell.frames), haystack + cell.needle)


def encode(model: Model, frames: np.ndarray) -> jax.Array:
    """Return the visual tokens of all frames in order, `[n, D]`, then those of padding frames.

    The newline after a whole video (`newline=one_token`) is left out.

    Args:
        model: spreads the frames over all devices; the result is split by width within a row.
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
            placed = everywhere(mesh, part.reshape(model.row_parts, each, *frames.shape[1:]))
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
    return round_up(head + (frames + 1) * config.tokens_per_frame, unit)


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
        needles: all of them, whose longest text sets R, so that all cells have the same.
        cells: one per row.
        haystack: frames in the table before the needles.
        P: see `prefix_length`.
    """
    B, V = len(cells), config.tokens_per_frame
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
        response=response_length(needles),
        frames=0,
        frame_shape=config.frame_shape,
    )
    return collate(config, rows, [np.zeros((0, *config.frame_shape), np.uint8)] * B, shape)
