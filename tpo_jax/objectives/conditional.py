"""Preferences between two videos: one answer, better on one of them.

A pair of two videos is two neighbouring rows of a batch, `2 i` and `2 i + 1`, the chosen video
first. Each row has the one answer, labelled in the first in the place of a chosen answer, in the
second in that of a rejected one, and nothing in the other place. A row with both is another pair.
Rows meet as sums over answers alone, two numbers a row.
"""

import jax
import jax.numpy as jnp

from tpo_jax.objectives.losses import Pairs, margins, sigmoid

VIDEO = "video/"  # prefix of the names of these pairs' metrics


def _other_row(values: jax.Array) -> jax.Array:
    """Return for every row of `[B, ...]` the values of its neighbour, `B` even."""
    return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)


def join_rows(sums: jax.Array, target_mask: jax.Array) -> jax.Array:
    """Return sums over answers; both rows of a pair of two videos get the sums of both.

    Args:
        sums: float32 `[B, Q, n]`, columns of chosen and of rejected answers, zero where there is no
            answer.
        target_mask: bool `[B, Q, 2, R]`.

    Returns:
        float32 `[B, Q, n]`; rows of pairs of two answers as they were.
    """
    answered = target_mask.any(-1)
    single = answered[..., 0] != answered[..., 1]
    return jnp.where(single[..., None], sums + _other_row(sums), sums)


def video_pairs(target_mask: jax.Array) -> jax.Array:
    """Return whether a row is the first of a complete pair of two videos: bool `[B, Q]`.

    Args:
        target_mask: bool `[B, Q, 2, R]`.
    """
    answered = target_mask.any(-1)
    chosen, rejected = answered[..., 0], answered[..., 1]
    return chosen & ~rejected & _other_row(rejected & ~chosen)


def video_loss(
    sums: jax.Array,
    present: jax.Array,
    reference: jax.Array | None,
    beta: float,
    total: jax.Array,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Return the conditional preference, the anchor and the metrics of pairs of two videos, each as
    its share of the whole batch's mean.

    The first is DPO's loss with the answer's log-ratio on either video in the place of those of two
    answers: the conditional preference of mDPO (arXiv 2406.11839, section 3), the video-level
    preference of VistaDPO (arXiv 2504.13122). The second holds the reward of the answer on the
    chosen video above 0: mDPO's anchor, with its delta of 0.

    Args:
        sums: float32 `[B, Q, 2]` of `join_rows`.
        present: bool `[B, Q]` of `video_pairs`.
        reference: float32 `[B, Q, 2]` or wider, the same under the reference; None: zeros.
        beta: inverse temperature.
        total: float32 scalar, pairs of two videos in the whole batch, at least 1.
    """

    def mean(values: jax.Array) -> jax.Array:
        return jnp.where(present, values, 0.0).sum() / total

    policy = jnp.where(present[..., None], sums, -1.0)
    known = jnp.zeros_like(policy)
    if reference is not None:
        known = jnp.where(present[..., None], reference[..., :2], -1.0)
    pairs = Pairs(policy, known, jnp.ones_like(policy))
    preference = mean(sigmoid(pairs, beta=beta, label_smoothing=0.0))
    anchor = mean(-jax.nn.log_sigmoid(beta * pairs.log_ratios[..., 0]))
    policy, rewards = jax.lax.stop_gradient((policy, beta * pairs.log_ratios))
    metrics = {"losses/dpo": preference, **margins(policy, rewards, mean)}
    return preference, anchor, {VIDEO + name: value for name, value in metrics.items()}
