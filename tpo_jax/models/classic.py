"""The layout of the original trainer, kept as the yardstick of the fast one.

Every answer is a row of its own: its video is encoded again, its prefix decoded again, and the
head is applied to all positions (`reference/models.md` section 6.4).
"""

import jax
import jax.numpy as jnp

from tpo_jax.models.vlm import VideoLanguageModel

VISUAL = {"frames", "patch_index", "patch_weight"}


def token_logps(
    model: VideoLanguageModel, batch: dict, *, remat: str = "none", freeze_tower: bool = False
) -> jax.Array:
    """What `VideoLanguageModel.token_logps` returns, computed the expensive way.

    Args:
        model: any.
        batch: see `docs/architecture.md`, "The batch".
        remat: policy name for the decoder layers.
        freeze_tower: no gradient into the tower.

    Returns:
        float32 `[B, Q, A, R]`, zero where `target_mask` is false.
    """
    logps = log_probabilities(model, batch, remat=remat, freeze_tower=freeze_tower)
    logps = jnp.take_along_axis(logps, batch["target_ids"][..., None], axis=-1)[..., 0]
    return jnp.where(batch["target_mask"], logps, 0.0)


def log_probabilities(
    model: VideoLanguageModel, batch: dict, *, remat: str = "none", freeze_tower: bool = False
) -> jax.Array:
    """Of every token of the vocabulary, at every answer position: float32 `[B, Q, A, R, W]`."""
    B, Q, A, R = batch["input_ids"].shape
    M, P = Q * A, batch["prefix_ids"].shape[1]

    def per_answer(name):
        return jnp.repeat(batch[name], M, axis=0)

    def flat(name):
        return batch[name].reshape(B * M, R)

    visual = model.encode(
        {name: per_answer(name) for name in VISUAL & batch.keys()}, freeze_tower=freeze_tower
    )
    x = model.embed_prefix(per_answer("prefix_ids"), visual, per_answer("visual_index"))
    x = jnp.concatenate([x, model.decoder.embed(flat("input_ids"))], axis=1)
    mask = jnp.concatenate([per_answer("prefix_mask"), flat("input_mask")], axis=1)
    hidden = model.decoder.sequence(x, mask, remat=remat)
    logits = model.decoder.head(hidden).astype(jnp.float32)
    places = jnp.broadcast_to(jnp.arange(P, P + R), (B * M, R))
    if "target_at" in batch:
        places = jnp.where(flat("target_at") >= 0, flat("target_at"), places)
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits), places[..., None], axis=1)
    return logps.reshape(B, Q, A, R, -1)
