"""Rows and their frames or images become a batch of one shape."""

import dataclasses

import numpy as np
import pytest

from tpo_jax import families
from tpo_jax.data.collate import collate, visual_sizes
from tpo_jax.data.rows import Row
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.pictures import Pictures

FRAME = (4, 4, 3)
TEXTS = {"questions": 2, "answers": 2, "response": 5}


def make_row(config, num_frames: int, questions: int = 1, tokens: int = 3) -> Row:
    """A row with text around the visual tokens, and labels on all tokens of its answers."""
    n = num_frames * config.tokens_per_frame + (config.newline == "one_token")
    index = np.array([-1, *range(n), -1, -1], np.int32)
    ids = np.arange(1, questions * 2 * tokens + 1, dtype=np.int32).reshape(questions, 2, tokens)
    mask = np.ones_like(ids, bool)
    texts = np.where(index < 0, 7, 0).astype(np.int32)
    return Row(texts, np.ones(len(index), bool), index, ids, mask, ids + 1, mask)


@pytest.mark.parametrize("name", ["tiny_longva", "tiny_llava_video"])
def test_newline_behind_the_video_moves_behind_the_empty_frames(name) -> None:
    config = dataclasses.replace(families.preset(name), newline="one_token")
    V, rows = config.tokens_per_frame, [make_row(config, 3), make_row(config, 5)]
    clips = [np.ones((n, *FRAME), np.uint8) for n in (3, 5)]
    frames, images = visual_sizes(clips)
    assert (frames, images) == (5, False)
    P = len(rows[1].prefix_ids)
    batch = collate(
        config, rows, clips, BatchShape(rows=2, prefix=P, frames=5, frame_shape=FRAME, **TEXTS)
    )
    assert batch.frames[0, :3].all() and not batch.frames[0, 3:].any() and batch.frames[1].all()
    padded, whole = batch.visual_index
    assert padded[padded >= 0].tolist() == [*range(3 * V), 5 * V]
    assert (whole == rows[1].visual_index).all()


def test_rows_are_padded_and_missing_ones_are_empty() -> None:
    config = families.preset("tiny_longva")
    row, clip = make_row(config, 1), np.ones((1, *FRAME), np.uint8)
    P = len(row.prefix_ids)
    shape = BatchShape(
        rows=3, prefix=P + 4, frames=1, frame_shape=FRAME, prefix_labels=True, pairs=True, **TEXTS
    )
    batch = collate(config, [None, row], [clip[:0], clip], shape)
    for name, values in row.arrays().items():
        found = getattr(batch, name)[1]
        cut = tuple(slice(n) for n in values.shape)
        assert found.dtype == values.dtype and (found[cut] == values).all()
        outside = found.copy()
        outside[cut] = -1 if name == "visual_index" else 0
        assert (outside == (-1 if name == "visual_index" else 0)).all()
    assert (batch.target_at == -1).all() and (batch.pair_index == -1).all()
    for b in (0, 2):
        assert batch.prefix_mask[b].sum() == 1  # no softmax is over nothing
        for values in (batch.frames, batch.prefix_ids, batch.input_mask, batch.target_mask):
            assert not values[b].any()


def test_shapes_are_those_of_the_abstract_batch() -> None:
    everything = {"images": True, "prefix_labels": True, "pairs": True, "phrases": True}
    shape = BatchShape(
        rows=2, prefix=9, frames=3, frame_shape=FRAME, reference_sums=4, **TEXTS, **everything
    )
    abstract, empty = vars(shape.abstract()), vars(shape.empty())
    assert [name for name, x in abstract.items() if x is None] == ["seeds"]
    for name, x in abstract.items():
        if x is not None:
            assert (empty[name].shape, empty[name].dtype) == (x.shape, x.dtype), name


def test_phrases_are_marked_and_views_rounded_up() -> None:
    config = families.preset("tiny_longva")
    row = make_row(config, 0)
    views = np.ones((5, *FRAME), np.uint8)
    pictures = Pictures(views, np.ones((2, 4), np.int32), np.ones((2, 4), np.float32), (2,))
    frames, images = visual_sizes([pictures])
    assert (frames, images) == (6, True)
    shape = BatchShape(
        rows=1, prefix=8, frames=6, frame_shape=FRAME, images=True, phrases=True, **TEXTS
    )
    batch = collate(config, [row], [pictures], shape)
    assert batch.frames[0, :5].all() and not batch.frames[0, 5:].any()
    assert batch.patch_weight[0].sum() == 8 and batch.patch_index[0, 2:].sum() == 0
    assert (batch.phrase_mask[0, 0] == batch.target_mask[0, 0]).all()  # not one token in common
