"""Supervised pre-training of a vision encoder on frame labels, in place of a published one.

The encoder is everything before the decoder: the vision tower, and what maps its features to visual
tokens.
"""

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
class EncoderTraining:
    """AdamW with a cosine schedule."""

    steps: int
    seed: int = 0  # of the class vectors and the order of frames
    batch_size: int = 128  # frames per step
    learning_rate: float = 2e-3  # peak


def encoder_of(params: dict) -> dict:
    """Return the parts of a model's parameters that are its encoder."""
    return {name: part for name, part in params.items() if name != "decoder"}


def pretrain_encoder(
    config: ModelConfig,
    params: dict,
    frames: np.ndarray,
    labels: np.ndarray,
    sizes: Sequence[int],
    training: EncoderTraining,
) -> tuple[dict, float]:
    """Train the encoder to name what each frame shows.

    The classifiers read the mean visual token of a frame and are fixed: orthogonal vectors, one per
    class. Every label then takes an equal part of the visual tokens, and the decoder learns to read
    all of them equally fast.

    Args:
        params: float32; the decoder stays as it is.
        frames: uint8 `[n, *frame_shape]`.
        labels: int32 `[n, len(sizes)]`, -1 where a label does not apply.
        sizes: classes of each label; at most `D` in all.
        training: length, seed, batch size and rate.

    Returns:
        The parameters with the trained encoder, and the mean loss of the last tenth of the steps.
    """
    steps, seed, learning_rate = training.steps, training.seed, training.learning_rate

    def tokens_of(encoder: dict, frames: Array) -> jax.Array:
        return families.bind(config, params | encoder).encode_frames(frames[:, None]).mean(1)

    random = jax.random.normal(jax.random.key(seed), (config.decoder.width, sum(sizes)))
    classes = 2.0 * jnp.linalg.qr(random)[0]
    trained = {"encoder": encoder_of(params), "bias": jnp.zeros(sum(sizes))}

    def loss(trained: dict, frames: jax.Array, labels: jax.Array) -> jax.Array:
        tokens = tokens_of(trained["encoder"], frames)
        tokens *= jax.lax.rsqrt(jnp.mean(tokens**2, axis=-1, keepdims=True) + 1e-6)
        logits = tokens @ classes + trained["bias"]
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
    return params | trained["encoder"], float(np.mean(losses[-max(1, steps // 10) :]))
