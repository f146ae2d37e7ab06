"""What every video language model does after its encoder: visual tokens among text, the decoder
over both streams of a row, and log-probabilities of the labelled tokens.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tpo_jax.models.batch import Array, Batch
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.decoder import Decoder, PrefixStream
from tpo_jax.models.quantized import SCALE
from tpo_jax.parallel.sharding import ROWS, WEIGHTS, WITHIN_ROW, constrain, vocabulary_axes


class VideoLanguageModel(nnx.Module):
    """Base of the families' models, which add an encoder: see `encode` and `encode_frames`."""

    config: ModelConfig
    decoder: Decoder

    @abc.abstractmethod
    def encode(self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none") -> jax.Array:
        """Return the visual tokens of a batch, `[B, n, D]`, where `visual_index` finds them.

        Args:
            batch: with `patch_index` its frames are views of images, and `n` is `P`.
            freeze_tower: no gradient enters the vision tower, and none of its activations is kept.
            remat: other than `none`, the backward pass recomputes the encoder's activations.
        """

    @abc.abstractmethod
    def encode_frames(
        self, frames: Array, *, freeze_tower: bool = False, remat: str = "none"
    ) -> jax.Array:
        """Return the visual tokens of videos, uint8 `[B, F, *frame_shape]` to `[B, n, D]`.

        The first `F * V` are the frames' in their order. Other arguments as for `encode`.
        """

    def embed_prefix(self, ids: Array, visual: jax.Array, visual_index: Array) -> jax.Array:
        """Embed text, with the visual tokens put in their slots.

        Args:
            ids: int `[B, P]`.
            visual: `[B, n, D]` from `encode`.
            visual_index: int `[B, P]`, which visual token sits there, -1 for text.

        Returns:
            `[B, P, D]`.
        """
        # Chips look up their part of the width, for all tokens: no chip gathers the table, or all
        # visual tokens of a row.
        text = constrain(self.decoder.embed(ids), "data", None, WEIGHTS)
        text = constrain(text, ROWS, None, WITHIN_ROW)
        return _in_slots(visual, visual_index, text)

    def features(
        self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none"
    ) -> tuple[jax.Array, ...]:
        """Return the visual tokens and, level by level, what a model with DeepStack adds to them
        after its first decoder layers, `[B, n, D]` each.

        Such a model overrides this; arguments are those of `encode`.
        """
        return (self.encode(batch, freeze_tower=freeze_tower, remat=remat),)

    def prefix(
        self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none"
    ) -> PrefixStream:
        """Encode and embed the prefixes of a batch; arguments are those of `encode`.

        A model whose tokens have three positions adds them.
        """
        tokens, *levels = self.features(batch, freeze_tower=freeze_tower, remat=remat)
        x = self.embed_prefix(batch.prefix_ids, tokens, batch.visual_index)
        nothing = jnp.zeros((), x.dtype)
        added = [_in_slots(level, batch.visual_index, nothing) for level in levels]
        return PrefixStream(
            x,
            batch.prefix_mask,
            deepstack=jnp.stack(added, axis=1) if added else None,
        )

    def hidden_states(
        self,
        batch: Batch,
        *,
        remat: str = "none",
        freeze_tower: bool = False,
        attention: str = "auto",
        scan: bool = True,
    ) -> jax.Array:
        """Return the hidden states that the head reads, at every token of every continuation.

        Args:
            remat: policy name for the decoder layers.
            freeze_tower: see `encode_frames`.
            attention: back end of `prefix_attention`.
            scan: decoder layers in a loop; false: unrolled.

        Returns:
            `[B, Q, A, R, D]`.
        """
        B, Q, A, R = batch.input_ids.shape

        def flat(values: Array | None) -> Array | None:
            return None if values is None else values.reshape(B, Q * A, R)

        hidden = self.decoder.row(
            self.prefix(batch, freeze_tower=freeze_tower, remat=remat),
            self.decoder.embed(flat(batch.input_ids)),
            flat(batch.input_mask),
            target_at=flat(batch.target_at),
            remat=remat,
            back_end=attention,
            scan=scan,
        )
        return hidden.reshape(B, Q, A, R, -1)

    def gather(self, hidden: jax.Array, batch: Batch, chunk: int = 0) -> jax.Array:
        """Return `token_logps` from `hidden_states`."""
        B, Q, A, R = batch.target_ids.shape
        flat = hidden.reshape(B, Q * A, R, -1), batch.target_ids.reshape(B, Q * A, R)
        logps = gather_logps(flat[0], self.decoder.head_kernel, flat[1], chunk)
        return jnp.where(batch.target_mask, logps.reshape(B, Q, A, R), 0.0)

    def next_tokens(self, hidden: jax.Array) -> jax.Array:
        """Return the argmax of the logits at every position of `[..., D]`: int32 `[...]`."""
        return jnp.argmax(_logits(hidden, self.decoder.head_kernel), axis=-1)

    def token_logps(self, batch: Batch, *, chunk: int = 0, **how: Any) -> jax.Array:
        """Return the log-probability of every labelled token of every continuation.

        Args:
            chunk: response positions per application of the head, 0 for all at once; must divide
                `R`.
            **how: arguments of `hidden_states`.

        Returns:
            float32 `[B, Q, A, R]`, zero where `target_mask` is false.
        """
        return self.gather(self.hidden_states(batch, **how), batch, chunk)


def _in_slots(visual: jax.Array, visual_index: Array, text: jax.Array) -> jax.Array:
    """Return the visual tokens `[B, n, D]` that int `[B, P]` names, and `text` where it is -1."""
    taken = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
    taken = constrain(taken, ROWS, None, WITHIN_ROW)
    return jnp.where(visual_index[..., None] >= 0, taken.astype(text.dtype), text)


def cast(params: dict, dtype: jax.typing.DTypeLike) -> dict:
    """Return the parameters in a dtype; quantized kernels and their scales stay as they are."""

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        kept = path[-1].key == SCALE or jnp.issubdtype(x.dtype, jnp.integer)
        return x if kept else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def gather_logps(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int = 0
) -> jax.Array:
    """Return the log-probabilities of `targets` under `softmax(hidden @ head)`, in float32.

    Logits exist for `chunk` positions at a time, split over the vocabulary, and are recomputed in
    the backward pass.

    Args:
        hidden: `[..., R, D]`.
        head: `[D, W]`.
        targets: int `[..., R]`.
        chunk: positions at a time, 0 for all; must divide `R`.

    Returns:
        float32 `[..., R]`.
    """

    def logps(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        logits = _logits(hidden, head)
        at_target = jnp.where(jnp.arange(head.shape[1]) == targets[..., None], logits, 0).sum(-1)
        return at_target - jax.nn.logsumexp(logits, axis=-1)

    return _in_chunks(logps, targets.ndim - 1, chunk, hidden, targets)


def token_divergence(
    hidden: jax.Array,
    head: jax.Array,
    reference_hidden: jax.Array,
    reference_head: jax.Array,
    chunk: int = 0,
) -> jax.Array:
    """Return KL(reference || policy) of the next-token distributions over the whole vocabulary.

    Args:
        hidden: `[..., R, D]` of the policy.
        head: `[D, W]` of the policy.
        reference_hidden: `[..., R, D]` of the reference.
        reference_head: `[D, W]` of the reference.
        chunk: as for `gather_logps`.

    Returns:
        float32 `[..., R]`.
    """

    def divergence(hidden: jax.Array, reference_hidden: jax.Array) -> jax.Array:
        policy = jax.nn.log_softmax(_logits(hidden, head))
        reference = jax.nn.log_softmax(_logits(reference_hidden, reference_head))
        return (jnp.exp(reference) * (reference - policy)).sum(-1)

    return _in_chunks(divergence, hidden.ndim - 2, chunk, hidden, reference_hidden)


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    logits = jnp.einsum("...d,dw->...w", hidden, head, preferred_element_type=jnp.float32)
    return constrain(logits, "data", *[None] * (logits.ndim - 2), vocabulary_axes(head.shape[1]))


def _in_chunks(
    function: Callable[..., jax.Array], axis: int, chunk: int, *arrays: jax.Array
) -> jax.Array:
    """Apply `function` to arrays `[..., R, ...]` with positions at `axis`, `chunk` at a time.

    Its intermediate values are recomputed in the backward pass.
    """
    function, R = jax.checkpoint(function), arrays[0].shape[axis]
    if chunk in (0, R):
        return function(*arrays)
    if R % chunk:
        raise ValueError(f"the head's chunk of {chunk} positions does not divide R={R}")
    parts = jax.lax.map(
        lambda part: function(*part),
        [
            jnp.moveaxis(
                x.reshape(*x.shape[:axis], R // chunk, chunk, *x.shape[axis + 1 :]), axis, 0
            )
            for x in arrays
        ],
    )
    return jnp.moveaxis(parts, 0, axis).reshape(arrays[0].shape[: axis + 1])
