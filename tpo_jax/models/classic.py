"""The layout of the original trainer, kept to test the fast one against.

Every answer is a row of its own: its video is encoded again, its prefix decoded again, and the
head is applied to all positions (`dpo_trainer.py` of the original TRL).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tpo_jax.models.batch import Array, Batch
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.models.rotary import continuation_positions
from tpo_jax.models.vlm import VideoLanguageModel


def token_logps(model: VideoLanguageModel, batch: Batch, **layout: Any) -> jax.Array:
    """Return what `VideoLanguageModel.token_logps` returns, computed the expensive way.

    Args:
        **layout: see `log_probabilities`.

    Returns:
        float32 `[B, Q, A, R]`, zero where `target_mask` is false.
    """
    logps = log_probabilities(model, batch, **layout)
    logps = jnp.take_along_axis(logps, batch.target_ids[..., None], axis=-1)[..., 0]
    return jnp.where(batch.target_mask, logps, 0.0)


def log_probabilities(
    model: VideoLanguageModel,
    batch: Batch,
    *,
    remat: str = "none",
    freeze_tower: bool = False,
    encode_once: bool = False,
    answers_only: bool = False,
) -> jax.Array:
    """Return the log-probability of every token of the vocabulary at every answer position.

    Args:
        remat: policy of the decoder layers, see `blocks.remat_policy`.
        freeze_tower: no gradient into the tower.
        encode_once: the answers of a row share its encoded video.
        answers_only: the head is applied to answer positions only.

    Returns:
        float32 `[B, Q, A, R, W]`.
    """
    B, Q, A, R = batch.input_ids.shape
    M, P = Q * A, batch.prefix_ids.shape[1]

    def per_answer(rows: Any) -> Any:
        return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), M, axis=0), rows)

    def flat(values: Array) -> Array:
        return values.reshape(B * M, R)

    if encode_once:
        prefix = per_answer(model.prefix(batch, freeze_tower=freeze_tower))
    else:
        names = [
            *("frames", "patch_index", "patch_weight", "prefix_ids", "prefix_mask"),
            "visual_index",
        ]
        repeated = per_answer({name: getattr(batch, name) for name in names})
        prefix = model.prefix(dataclasses.replace(batch, **repeated), freeze_tower=freeze_tower)
    answers = model.decoder.embed(flat(batch.input_ids)), flat(batch.input_mask)
    hidden = model.decoder.sequence(appended(prefix, *answers), remat=remat)
    places = jnp.broadcast_to(jnp.arange(P, P + R), (B * M, R))
    if batch.target_at is not None:
        places = jnp.where(flat(batch.target_at) >= 0, flat(batch.target_at), places)

    def head(hidden: jax.Array) -> jax.Array:
        return jax.nn.log_softmax((hidden @ model.decoder.head_kernel).astype(jnp.float32))

    if answers_only:
        logps = head(jnp.take_along_axis(hidden, places[..., None], axis=1))
    else:
        logps = jnp.take_along_axis(head(hidden), places[..., None], axis=1)
    return logps.reshape(B, Q, A, R, -1)


def appended(prefix: PrefixStream, x: jax.Array, mask: Array) -> PrefixStream:
    """Append to each prefix what follows it, and return the joined stream.

    Args:
        x: `[B, R, D]`, embedded tokens.
        mask: bool `[B, R]`, real tokens.
    """
    deepstack = prefix.deepstack
    if deepstack is not None:
        deepstack = jnp.pad(deepstack, ((0, 0), (0, 0), (0, x.shape[1]), (0, 0)))
    positions = prefix.positions
    if positions is not None:
        after = continuation_positions(prefix.mask, mask[:, None], prefix.end)[:, 0]
        after = jnp.repeat(after[..., None], 3, axis=-1)
        positions = jnp.concatenate([positions, after], axis=1)
    return PrefixStream(
        jnp.concatenate([prefix.x, x], axis=1),
        jnp.concatenate([prefix.mask, mask], axis=1),
        positions=positions,
        deepstack=deepstack,
    )
