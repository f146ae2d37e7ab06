"""The batch: what the pipeline yields and what the step, the scorer and the generator read.

Letters are those of `docs/architecture.md`, "Dimension letters".
"""

import dataclasses
from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one static shape: NumPy on the host, `jax.Array` on the mesh; rows are axis 0."""

    frames: Array
    """uint8 `[B, F, *frame_shape]`: of `Family.preprocess`; of images, their views. Zero where
    missing."""
    prefix_ids: Array
    """int32 `[B, P]`: text tokens; 0 at visual tokens and padding."""
    prefix_mask: Array
    """bool `[B, P]`: text and visual tokens; padding is on the right. An empty row keeps one."""
    visual_index: Array
    """int32 `[B, P]`: which visual token of its row stands there; -1 for text and padding."""
    input_ids: Array
    """int32 `[B, Q, A, R]`: tokens of the continuations."""
    input_mask: Array
    """bool `[B, Q, A, R]`: real tokens; padding is on the right."""
    target_ids: Array
    """int32 `[B, Q, A, R]`: the next tokens."""
    target_mask: Array
    """bool `[B, Q, A, R]`: labelled tokens; all false where a row has no such pair, and in
    generation."""
    target_at: Array | None = None
    """int32 `[B, Q, A, R]`: the place in the prefix whose hidden state predicts this target; -1:
    the continuation's own. None where no label lies in the prefix."""
    pair_index: Array | None = None
    """int32 `[B, Q]`: position of the pair in the shards; -1: none; -2 minus the position: skipped,
    it cannot be decoded. None outside of training."""
    phrase_mask: Array | None = None
    """bool `[B, Q, 2, R]`: labelled tokens in which the answers differ. None where unused."""
    reference_logps: Array | None = None
    """float32 `[B, Q, 2]`: summed reference log-probabilities; `[B, Q, 4]` with the sums over
    phrases after. None where no cache is used."""
    patch_index: Array | None = None
    """int32 `[B, P, 4]`: which patches a visual token of an image sums; 0: the newline vector,
    `1 + view * N + patch` else. None for videos."""
    patch_weight: Array | None = None
    """float32 `[B, P, 4]`: the weights of that sum; zero after the last visual token."""
    seeds: Array | None = None
    """uint32 `[B]`: seeds of the rows' random draws. None outside of generation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The sizes of a batch, and which of its optional fields it has."""

    rows: int  # B
    prefix: int  # P
    questions: int  # Q
    answers: int  # A
    response: int  # R
    frames: int  # F; of images: views
    frame_shape: tuple[int, ...]  # of the model config
    images: bool = False  # patch_index, patch_weight
    prefix_labels: bool = False  # target_at
    pairs: bool = False  # pair_index
    phrases: bool = False  # phrase_mask
    reference_sums: int = 0  # last axis of reference_logps; 0: absent

    def abstract(self) -> Batch:
        """Return the batch with a `jax.ShapeDtypeStruct` in place of every array."""

        def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.rows, *shape), np.dtype(dtype))

        prefix, texts = (self.prefix,), (self.questions, self.answers, self.response)
        fields = {
            "frames": array("uint8", self.frames, *self.frame_shape),
            "prefix_ids": array("int32", *prefix),
            "prefix_mask": array("bool", *prefix),
            "visual_index": array("int32", *prefix),
            "input_ids": array("int32", *texts),
            "input_mask": array("bool", *texts),
            "target_ids": array("int32", *texts),
            "target_mask": array("bool", *texts),
        }
        if self.prefix_labels:
            fields["target_at"] = array("int32", *texts)
        if self.pairs:
            fields["pair_index"] = array("int32", self.questions)
        if self.phrases:
            fields["phrase_mask"] = array("bool", *texts)
        if self.reference_sums:
            fields["reference_logps"] = array("float32", self.questions, self.reference_sums)
        if self.images:
            fields["patch_index"] = array("int32", *prefix, 4)
            fields["patch_weight"] = array("float32", *prefix, 4)
        return Batch(**fields)

    @property
    def num_bytes(self) -> int:
        """Size of the batch's arrays in bytes."""
        arrays = jax.tree.leaves(self.abstract())
        return sum(array.size * array.dtype.itemsize for array in arrays)

    def empty(self) -> Batch:
        """Return NumPy arrays of a batch of empty rows.

        One padding token of every row is unmasked, so that no softmax has all its keys masked.
        """
        batch: Batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.abstract())
        for index in (batch.visual_index, batch.target_at, batch.pair_index):
            if isinstance(index, np.ndarray):
                index[:] = -1
        np.asarray(batch.prefix_mask)[:, :1] = True
        return batch
