"""Supervised pre-training of a vision tower on frame labels, in place of a published tower."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpo_jax import families
from tpo_jax.models.batch import Array
from tpo_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class TowerTraining:
    """AdamW with a cosine schedule."""

    steps: int
    seed: int = 0  # of the classifiers and the order of frames
    batch_size: int = 128  # frames per step
    learning_rate: float = 2e-3  # peak


def pretrain_tower(
    config: ModelConfig,
    params: dict,
    frames: np.ndarray,
    labels: np.ndarray,
    sizes: Sequence[int],
    training: TowerTraining,
) -> tuple[dict, float]:
    """Train the vision tower, with linear classifiers on its mean feature that are not kept.

    Args:
        params: float32; only the tower changes.
        frames: uint8 `[n, *frame_shape]`.
        labels: int32 `[n, len(sizes)]`, -1 where a label does not apply.
        sizes: classes of each label.
        training: length, seed, batch size and rate.

    Returns:
        The parameters with the trained tower, and the mean loss of the last tenth of the steps.
    """
    steps, seed, learning_rate = training.steps, training.seed, training.learning_rate

    def features_of(tower: dict, frames: Array) -> jax.Array:
        return families.bind(config, params | {"tower": tower}).frame_features(frames)

    width = jax.eval_shape(features_of, params["tower"], frames[:1]).shape[-1]
    heads = jax.random.normal(jax.random.key(seed), (width, sum(sizes))) * 0.02
    trained = {"tower": params["tower"], "heads": heads, "bias": jnp.zeros(sum(sizes))}

    def loss(trained: dict, frames: jax.Array, labels: jax.Array) -> jax.Array:
        features = features_of(trained["tower"], frames)
        features *= jax.lax.rsqrt(jnp.mean(features**2, axis=-1, keepdims=True) + 1e-6)
        logits = features @ trained["heads"] + trained["bias"]
        total = jnp.zeros(())
        for i, part in enumerate(jnp.split(logits, np.cumsum(sizes)[:-1], axis=-1)):
            logps = jax.nn.log_softmax(part)
            picked = jnp.take_along_axis(logps, jnp.maximum(labels[:, i, None], 0), axis=1)[:, 0]
            total -= jnp.where(labels[:, i] >= 0, picked, 0.0).mean()
        return total

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(50, steps // 10), steps, learning_rate / 20
    )
    optimizer = optax.adamw(schedule, b2=0.98, weight_decay=0.01)

    @jax.jit
    def step(
        trained: dict, state: optax.OptState, frames: np.ndarray, labels: np.ndarray
    ) -> tuple[dict, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(trained, frames, labels)
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state, value

    rng, state, losses = np.random.default_rng(seed), optimizer.init(trained), []
    for _ in range(steps):
        picked = rng.integers(0, len(frames), training.batch_size)
        trained, state, value = step(trained, state, frames[picked], labels[picked])
        losses.append(value)
    return params | {"tower": trained["tower"]}, float(np.mean(losses[-max(1, steps // 10) :]))
