"""Preference losses by name: log-probabilities of pairs in, one loss per pair out.

Every function takes `Pairs` and the hyperparameters it reads, ignores the others, and returns
float32 `[...]`. `beta` is the inverse temperature of the implicit reward, `label_smoothing` the
probability that a label is wrong: that the rejected answer is the better one. A log-ratio is the
log-probability of an answer minus its log-probability under the reference.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The largest mean log-probability of an answer: at 0 the odds would be infinite.
_CERTAIN = -1e-6


class Pairs(NamedTuple):
    """Statistics of preference pairs: float32 `[..., 2]`, chosen then rejected."""

    policy: jax.Array  # summed log-probabilities of the answers
    reference: jax.Array  # the same under the reference, 0 for reference-free training
    lengths: jax.Array  # labelled tokens, at least 1
    mean_log_ratios: jax.Array | None = None  # float32 `[2]`, of the whole batch; for kto_pair
    phrase_log_ratios: jax.Array | None = None  # over the tokens that differ only; for rrpo

    @property
    def log_ratios(self) -> jax.Array:
        """Log-probabilities of policy minus reference, float32 `[..., 2]`."""
        return self.policy - self.reference


def margins(
    policy: jax.Array, rewards: jax.Array, mean: Callable[[jax.Array], jax.Array]
) -> dict[str, jax.Array]:
    """Return the metrics that say how far chosen and rejected answers are apart.

    Args:
        policy: float32 `[..., 2]`, summed log-probabilities.
        rewards: float32 `[..., 2]`.
        mean: over pairs, `[...]` to a scalar.
    """
    return {
        "rewards/chosen": mean(rewards[..., 0]),
        "rewards/rejected": mean(rewards[..., 1]),
        "rewards/margins": mean(rewards[..., 0] - rewards[..., 1]),
        "rewards/accuracies": mean((rewards[..., 0] > rewards[..., 1]).astype(jnp.float32)),
        "logps/chosen": mean(policy[..., 0]),
        "logps/rejected": mean(policy[..., 1]),
    }


def _difference(values: jax.Array) -> jax.Array:
    return values[..., 0] - values[..., 1]


def _smoothed(h: jax.Array, label_smoothing: float) -> jax.Array:
    clean, flipped = jax.nn.log_sigmoid(h), jax.nn.log_sigmoid(-h)
    return -(1 - label_smoothing) * clean - label_smoothing * flipped


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: float, **_: float) -> jax.Array:
    """Return the DPO loss (arXiv 2305.18290, eq. 7); with label smoothing, conservative DPO."""
    return _smoothed(beta * _difference(pairs.log_ratios), label_smoothing)


def robust(pairs: Pairs, *, beta: float, label_smoothing: float, **_: float) -> jax.Array:
    """Return the robust DPO loss (arXiv 2403.00409), unbiased where a share `label_smoothing` of
    the labels is wrong; it may be negative.
    """
    h = beta * _difference(pairs.log_ratios)
    clean, flipped = jax.nn.log_sigmoid(h), jax.nn.log_sigmoid(-h)
    unnormalised = -(1 - label_smoothing) * clean + label_smoothing * flipped
    return unnormalised / (1 - 2 * label_smoothing)


def hinge(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the hinge loss on the margin (RSO, arXiv 2309.06657; SLiC, arXiv 2305.10425)."""
    return jax.nn.relu(1 - beta * _difference(pairs.log_ratios))


def ipo(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the IPO loss (arXiv 2310.12036, eq. 17), over log-ratios per token as its authors ran
    it and as TRL and the original trainer do.
    """
    return (_difference(pairs.log_ratios / pairs.lengths) - 1 / (2 * beta)) ** 2


def kto_pair(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the KTO loss of pairs (arXiv 2402.01306, as in the original trainer).

    Each answer is compared with the mean log-ratio of the batch's opposite answers, through which
    no gradient flows.
    """
    baseline = jax.lax.stop_gradient(jnp.maximum(pairs.mean_log_ratios, 0))
    chosen = jax.nn.sigmoid(beta * (pairs.log_ratios[..., 0] - baseline[1]))
    rejected = jax.nn.sigmoid(beta * (baseline[0] - pairs.log_ratios[..., 1]))
    return 1 - (chosen + rejected) / 2


def sigmoid_norm(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the length-normalised DPO loss (Tülu 3, arXiv 2411.15124): log-ratios per token."""
    return -jax.nn.log_sigmoid(beta * _difference(pairs.log_ratios / pairs.lengths))


def simpo(
    pairs: Pairs, *, beta: float, label_smoothing: float, margin: float, **_: float
) -> jax.Array:
    """Return the SimPO loss (arXiv 2405.14734): mean log-probabilities, no reference, and a target
    margin (the paper's gamma).
    """
    return _smoothed(beta * _difference(pairs.policy / pairs.lengths) - margin, label_smoothing)


def leanpo(pairs: Pairs, *, beta: float, label_smoothing: float, **_: float) -> jax.Array:
    """Return the LeanPO loss (arXiv 2506.05260): the reward is `beta` times the mean
    log-probability, without a reference.

    Label smoothing is constant here; the paper adapts it during training.
    """
    return _smoothed(beta * _difference(pairs.policy / pairs.lengths), label_smoothing)


def orpo(pairs: Pairs, **_: float) -> jax.Array:
    """Return the odds-ratio term of ORPO (arXiv 2403.07691, eq. 7) over mean log-probabilities.

    The paper's lambda is its weight beside the supervised term, `Objective.dpo_weight`.
    """
    mean = jnp.minimum(pairs.policy / pairs.lengths, _CERTAIN)
    log_odds = mean - jnp.log(-jnp.expm1(mean))
    return -jax.nn.log_sigmoid(_difference(log_odds))


def apo_zero(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the APO-zero loss (arXiv 2408.06266, eq. 7): chosen up, rejected down."""
    rewards = jax.nn.sigmoid(beta * pairs.log_ratios)
    return 1 - _difference(rewards)


def apo_down(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the APO-down loss (arXiv 2408.06266, eq. 8): both down, the rejected further; for
    chosen answers that are worse than the model's own.
    """
    chosen = jax.nn.sigmoid(beta * pairs.log_ratios[..., 0])
    return chosen + 1 - jax.nn.sigmoid(beta * _difference(pairs.log_ratios))


def rrpo(pairs: Pairs, *, beta: float, **_: float) -> jax.Array:
    """Return the RRPO loss (arXiv 2504.12083): DPO over the tokens in which the answers differ.

    The paper's regulariser is `Objective.token_kl`.
    """
    return -jax.nn.log_sigmoid(beta * _difference(pairs.phrase_log_ratios))


LOSSES: dict[str, Callable[..., jax.Array]] = {
    function.__name__: function
    for function in (
        sigmoid,
        robust,
        hinge,
        ipo,
        kto_pair,
        sigmoid_norm,
        simpo,
        leanpo,
        orpo,
        apo_zero,
        apo_down,
        rrpo,
    )
}
WITHOUT_REFERENCE = ("simpo", "leanpo", "orpo")
WITH_SMOOTHING = ("sigmoid", "robust", "simpo", "leanpo")
