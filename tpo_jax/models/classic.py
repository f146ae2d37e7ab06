"""The layout of the original trainer, kept as the yardstick of the fast one.

Every answer is a row of its own: its video is encoded again, its prefix decoded again, and the
head is applied to all positions (`reference/models.md` section 6.4).
"""

import jax
import jax.numpy as jnp

from tpo_jax.models.vlm import VideoLanguageModel

VISUAL = {"frames", "patch_index", "patch_weight"}


def token_logps(model: VideoLanguageModel, batch: dict, **layout) -> jax.Array:
    """What `VideoLanguageModel.token_logps` returns, computed the expensive way.

    Args:
        model: any.
        batch: see `docs/architecture.md`, "The batch".
        **layout: see `log_probabilities`.

    Returns:
        float32 `[B, Q, A, R]`, zero where `target_mask` is false.
    """
    logps = log_probabilities(model, batch, **layout)
    logps = jnp.take_along_axis(logps, batch["target_ids"][..., None], axis=-1)[..., 0]
    return jnp.where(batch["target_mask"], logps, 0.0)


def log_probabilities(
    model: VideoLanguageModel,
    batch: dict,
    *,
    remat: str = "none",
    freeze_tower: bool = False,
    encode_once: bool = False,
    answers_only: bool = False,
) -> jax.Array:
    """Of every token of the vocabulary, at every answer position.

    Args:
        model: any.
        batch: see `docs/architecture.md`, "The batch".
        remat: policy of the decoder layers, see `qwen2.remat_policy`.
        freeze_tower: no gradient into the tower.
        encode_once: the answers of a row share its encoded video.
        answers_only: the head is applied to answer positions only.

    Returns:
        float32 `[B, Q, A, R, W]`.
    """
    B, Q, A, R = batch["input_ids"].shape
    M, P = Q * A, batch["prefix_ids"].shape[1]

    def per_answer(values):
        return jnp.repeat(values, M, axis=0)

    def flat(name):
        return batch[name].reshape(B * M, R)

    pictures = {name: batch[name] for name in VISUAL & batch.keys()}
    if encode_once:
        visual = per_answer(model.encode(pictures, freeze_tower=freeze_tower))
    else:
        visual = model.encode(jax.tree.map(per_answer, pictures), freeze_tower=freeze_tower)
    x = model.embed_prefix(
        per_answer(batch["prefix_ids"]), visual, per_answer(batch["visual_index"])
    )
    x = jnp.concatenate([x, model.decoder.embed(flat("input_ids"))], axis=1)
    mask = jnp.concatenate([per_answer(batch["prefix_mask"]), flat("input_mask")], axis=1)
    hidden = model.decoder.sequence(x, mask, remat=remat)
    places = jnp.broadcast_to(jnp.arange(P, P + R), (B * M, R))
    if "target_at" in batch:
        places = jnp.where(flat("target_at") >= 0, flat("target_at"), places)

    def head(hidden):
        return jax.nn.log_softmax(model.decoder.head(hidden).astype(jnp.float32))

    if answers_only:
        logps = head(jnp.take_along_axis(hidden, places[..., None], axis=1))
    else:
        logps = jnp.take_along_axis(head(hidden), places[..., None], axis=1)
    return logps.reshape(B, Q, A, R, -1)
