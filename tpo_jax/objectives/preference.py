"""DPO plus a weighted supervised term: the TPO objective.

`loss = dpo_weight * mean over pairs of dpo + alpha * mean over chosen tokens of -log pi`, the
formulas of the original trainer (`reference/models.md` section 6.5; TPO paper section 3.3). Both
means are written as sums over a given denominator, so that micro-batches add up to the full batch
exactly.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the loss; `alpha` is the paper's weight of the supervised term, `gamma` in the
    original code.
    """

    beta: float = 0.1
    alpha: float = 0.5
    dpo_weight: float = 1.0
    label_smoothing: float = 0.0

    @property
    def uses_pairs(self) -> bool:
        """Whether rejected answers and a reference are needed at all."""
        return self.dpo_weight != 0


def dpo(
    policy: jax.Array, reference: jax.Array, beta: float, label_smoothing: float = 0.0
) -> jax.Array:
    """Sigmoid DPO loss of every pair (arXiv 2305.18290, eq. 7; label smoothing as cDPO).

    Args:
        policy: float32 `[..., 2]`, summed log-probabilities of chosen and rejected answers.
        reference: the same under the reference model.
        beta: inverse temperature.
        label_smoothing: probability that the preference is flipped.

    Returns:
        float32 `[...]`; ln 2 where policy and reference agree.
    """
    gain = policy - reference
    h = beta * (gain[..., 0] - gain[..., 1])
    return -(
        (1 - label_smoothing) * jax.nn.log_sigmoid(h) + label_smoothing * jax.nn.log_sigmoid(-h)
    )


def denominators(target_mask: jax.Array) -> dict[str, jax.Array]:
    """How many pairs and how many chosen tokens a batch holds, each at least 1.

    Args:
        target_mask: bool `[B, Q, A, R]`.

    Returns:
        float32 scalars `pairs`, `tokens`.
    """
    present = target_mask.any(-1).all(-1)
    return {
        "pairs": jnp.maximum(present.sum(), 1).astype(jnp.float32),
        "tokens": jnp.maximum(target_mask[:, :, 0].sum(), 1).astype(jnp.float32),
    }


def tpo_loss(
    token_logps: jax.Array,
    target_mask: jax.Array,
    reference: jax.Array | None,
    objective: Objective,
    totals: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of a (micro-)batch as its share of the whole batch, and the metrics likewise.

    Args:
        token_logps: float32 `[B, Q, A, R]`, zero where not labelled.
        target_mask: bool `[B, Q, A, R]`.
        reference: float32 `[B, Q, 2]`, or None when the objective uses no pairs (`A` may then be
            1).
        objective: weights.
        totals: `denominators` of the whole batch.

    Returns:
        The loss and a dict of metrics, float32 scalars; summed over the micro-batches of a batch
        they are the batch's means. Rewards and log-probabilities are detached.
    """
    lengths = target_mask.sum(-1).astype(jnp.float32)  # [B, Q, A]
    sft = -token_logps[:, :, 0].sum() / totals["tokens"]
    loss = objective.alpha * sft
    metrics = {"losses/sft": sft}
    present = target_mask.any(-1).all(-1)

    def mean(values):
        return jnp.where(present, values, 0.0).sum() / totals["pairs"]

    metrics["lengths/chosen"] = mean(lengths[..., 0])
    if objective.uses_pairs:
        if reference is None:
            raise ValueError(
                "an objective with a preference term needs reference log-probabilities"
            )
        policy = token_logps.sum(-1)
        losses = mean(dpo(policy, reference, objective.beta, objective.label_smoothing))
        loss = loss + objective.dpo_weight * losses
        policy = jax.lax.stop_gradient(policy)
        rewards = objective.beta * (policy - reference)
        metrics |= {
            "losses/dpo": losses,
            "rewards/chosen": mean(rewards[..., 0]),
            "rewards/rejected": mean(rewards[..., 1]),
            "rewards/margins": mean(rewards[..., 0] - rewards[..., 1]),
            "rewards/accuracies": mean((rewards[..., 0] > rewards[..., 1]).astype(jnp.float32)),
            "logps/chosen": mean(policy[..., 0]),
            "logps/rejected": mean(policy[..., 1]),
            "ref_logps/chosen": mean(reference[..., 0]),
            "ref_logps/rejected": mean(reference[..., 1]),
            # The answers are samples of the reference: an estimate of KL(reference || policy) per
            # answer.
            "kl/chosen": mean(reference[..., 0] - policy[..., 0]),
            "kl/rejected": mean(reference[..., 1] - policy[..., 1]),
            "lengths/rejected": mean(lengths[..., 1]),
        }
    return loss, metrics | {"losses/total": loss}
