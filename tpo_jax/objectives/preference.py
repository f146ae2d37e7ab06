"""A preference loss plus a weighted supervised term; the defaults are the TPO objective.

`total = dpo_weight * preference + alpha * sft + token_kl * KL`, where `preference` is a mean over
pairs of one loss of `losses.py` or a weighted sum of several, `sft` a mean over chosen tokens of
`-log pi` and `KL` a mean over chosen answers of the divergence from the reference, summed over
their tokens. TPO (arXiv 2501.13919, section 3.3) is `sigmoid` with `alpha`. Pairs of two videos,
in a batch beside those of two answers, add means of their own (`conditional.py`).

Every mean is a sum over a given denominator, so that micro-batches add up to the full batch
exactly.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from tpo_jax.errors import InputError
from tpo_jax.objectives.conditional import VIDEO, join_rows, video_loss, video_pairs
from tpo_jax.objectives.losses import LOSSES, WITH_SMOOTHING, WITHOUT_REFERENCE, Pairs, margins


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses and their weights. `alpha`, the paper's weight of the supervised term, is called
    `gamma` in the original code.

    Raises:
        InputError: a weight out of range, an unknown loss, or fields that contradict each other.
    """

    beta: float = 0.1
    alpha: float = 0.5
    dpo_weight: float = 1.0
    label_smoothing: float = 0.0
    loss: str = "sigmoid"  # of `LOSSES`, or a sum: 0.8*sigmoid+0.2*ipo
    margin: float = 0.5  # of simpo
    reference_free: bool = False  # take the reference's log-probabilities as 0
    token_kl: float = 0.0  # weight of KL(reference || policy) at the chosen answer's tokens
    video_weight: float = 0.0  # weight of the preference between the two videos of a pair
    video_anchor: float = 0.0  # weight of keeping the reward on the chosen video above 0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise InputError(f"objective.beta={self.beta} must be above 0")
        weights = ("alpha", "dpo_weight", "token_kl", "video_weight", "video_anchor")
        for name in (*weights, "margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"objective.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(
                f"objective.label_smoothing={self.label_smoothing} must be at least 0 and below 0.5"
            )
        if not any(getattr(self, name) for name in weights):
            raise InputError(
                "objective.alpha and objective.dpo_weight are both 0: nothing to train"
            )
        if not set(self.terms) & set(WITH_SMOOTHING) and self.label_smoothing:
            raise InputError(
                f"objective.label_smoothing={self.label_smoothing} has no effect with "
                f"objective.loss={self.loss!r}; it applies to {', '.join(WITH_SMOOTHING)}"
            )
        if self.reference_free and self.token_kl:
            raise InputError(
                "objective.token_kl needs a reference: set objective.reference_free=False"
            )

    @property
    def terms(self) -> dict[str, float]:
        """Weights of the losses by name."""
        return parse(self.loss)

    @property
    def uses_pairs(self) -> bool:
        """Whether the loss reads rejected answers."""
        return self.dpo_weight != 0

    @property
    def answers(self) -> int:
        """Answers of a pair that a batch must have, A."""
        return 2 if self.uses_pairs or self.uses_videos else 1

    @property
    def uses_reference(self) -> bool:
        """Whether the loss reads log-probabilities under a reference."""
        names = set(self.terms) - set(WITHOUT_REFERENCE)
        return not self.reference_free and (self.uses_pairs and bool(names) or self.uses_videos)

    @property
    def uses_videos(self) -> bool:
        """Whether batches have pairs of two videos."""
        return self.video_weight > 0 or self.video_anchor > 0

    @property
    def rows_together(self) -> int:
        """Neighbouring rows of a batch that may be one pair."""
        return 2 if self.uses_videos else 1

    @property
    def uses_live_reference(self) -> bool:
        """Whether the loss reads the reference's next-token distributions, which no cache holds."""
        return self.token_kl > 0

    @property
    def uses_phrases(self) -> bool:
        """Whether the loss reads in which tokens the answers differ."""
        return self.uses_pairs and "rrpo" in self.terms

    @property
    def uses_mean_log_ratios(self) -> bool:
        """Whether a pair's loss depends on the mean log-ratios of its batch."""
        return self.uses_pairs and "kto_pair" in self.terms


def parse(loss: str) -> dict[str, float]:
    """Return the weights by name of a sum of losses: `ipo`, `0.8*sigmoid+0.2*ipo`.

    Raises:
        InputError: not a sum of known losses with weights above 0.
    """
    terms: dict[str, float] = {}
    for term in loss.split("+"):
        number, _, name = term.strip().rpartition("*")
        if name not in LOSSES:
            raise InputError(
                f"objective.loss={loss!r}: no loss {name!r}; there are {', '.join(LOSSES)}, and "
                "sums such as 0.8*sigmoid+0.2*ipo"
            )
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise InputError(
                f"objective.loss={loss!r}: the weight of {name} must be a number above 0"
            )
        if name in terms:
            raise InputError(f"objective.loss={loss!r} names {name} twice")
        terms[name] = weight
    return terms


def counts(target_mask: jax.Array, videos: bool = False) -> Iterator[tuple[str, jax.Array]]:
    """Yield a batch's counts by name: pairs of two answers, and tokens of their chosen answers.

    Args:
        target_mask: bool `[B, Q, A, R]`.
        videos: whether to count the pairs of two videos, too.

    Yields:
        int32 scalars `pairs`, `tokens` and, with `videos`, `video_pairs`.
    """
    present = target_mask.any(-1).all(-1)
    yield "pairs", present.sum()
    chosen = target_mask[:, :, 0]
    yield "tokens", (chosen & present[..., None] if videos else chosen).sum()
    if videos:
        yield "video_pairs", video_pairs(target_mask).sum()


def denominators(target_mask: jax.Array, videos: bool = False) -> dict[str, jax.Array]:
    """Return the `counts` of a batch, each at least 1, as float32 scalars."""
    return {
        name: jnp.maximum(count, 1).astype(jnp.float32)
        for name, count in counts(target_mask, videos)
    }


def mean_log_ratios(
    token_logps: jax.Array,
    target_mask: jax.Array,
    reference: jax.Array | None,
    totals: dict[str, jax.Array],
) -> jax.Array:
    """Return the mean log-ratios of chosen and rejected answers: this part's share of the batch's.

    Args:
        token_logps: float32 `[B, Q, 2, R]`, zero where not labelled.
        target_mask: bool `[B, Q, 2, R]`.
        reference: float32 `[B, Q, 2]` or wider, the sums over answers first; None: zeros.
        totals: `denominators` of the whole batch.

    Returns:
        float32 `[2]`; the sum over micro-batches is `totals["mean_log_ratios"]` of `tpo_loss`.
    """
    log_ratios = token_logps.sum(-1) - (0 if reference is None else reference[..., :2])
    present = target_mask.any(-1).all(-1)
    return jnp.where(present[..., None], log_ratios, 0.0).sum((0, 1)) / totals["pairs"]


def tpo_loss(
    token_logps: jax.Array,
    target_mask: jax.Array,
    reference: jax.Array | None,
    objective: Objective,
    totals: dict[str, jax.Array],
    phrase_mask: jax.Array | None = None,
    token_kl: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss and metrics of a (micro-)batch, each as its share of the whole batch's.

    Args:
        token_logps: float32 `[B, Q, A, R]`, zero where not labelled; `A` may be 1 if the objective
            uses no pairs.
        target_mask: bool `[B, Q, A, R]`.
        reference: float32 `[B, Q, 2]`, summed log-probabilities; `[B, Q, 4]` when the objective
            uses phrases, with their sums last; None without a reference. Both rows of a pair of two
            videos hold the sums of both.
        totals: `denominators` of the whole batch; with `mean_log_ratios` if this is a micro-batch
            and the objective uses them.
        phrase_mask: bool `[B, Q, 2, R]`, tokens in which the answers differ.
        token_kl: float32 `[B, Q, R]`, divergence from the reference at every labelled token of the
            chosen answers, zero elsewhere; None when `objective.token_kl` is 0.

    Returns:
        The loss and the metrics, float32 scalars; their sums over the micro-batches of a batch are
        the batch's means. No gradient flows through rewards and log-probabilities.
    """
    lengths = target_mask.sum(-1).astype(jnp.float32)  # [B, Q, A]
    chosen = token_logps[:, :, 0]
    if objective.uses_videos:
        chosen = jnp.where(target_mask.any(-1).all(-1)[..., None], chosen, 0.0)
    sft = -chosen.sum() / totals["tokens"]
    loss = objective.alpha * sft
    metrics = {"losses/sft": sft}
    present = target_mask.any(-1).all(-1)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.where(present, values, 0.0).sum() / totals["pairs"]

    metrics["lengths/chosen"] = mean(lengths[..., 0])
    if objective.uses_live_reference:
        if token_kl is None:
            raise ValueError("objective.token_kl is above 0 and no token_kl is given")
        divergence = mean(token_kl.sum(-1))
        loss = loss + objective.token_kl * divergence
        metrics["losses/token_kl"] = divergence
    if objective.uses_pairs:
        pairs = _pairs(token_logps, lengths, present, reference, objective, phrase_mask)
        if objective.uses_mean_log_ratios:
            whole = totals.get("mean_log_ratios")
            if whole is None:
                whole = mean_log_ratios(token_logps, target_mask, reference, totals)
            pairs = pairs._replace(mean_log_ratios=whole)
        preference = jnp.float32(0)
        for name, weight in objective.terms.items():
            values = mean(
                LOSSES[name](
                    pairs,
                    beta=objective.beta,
                    label_smoothing=objective.label_smoothing,
                    margin=objective.margin,
                )
            )
            preference += weight * values
            # `losses/dpo` is the original trainer's name.
            metrics["losses/dpo" if name == "sigmoid" else f"losses/{name}"] = values
        loss = loss + objective.dpo_weight * preference
        metrics |= _records(jax.lax.stop_gradient(pairs), lengths, objective, mean)
    if objective.uses_videos:
        if objective.uses_reference and reference is None:
            raise ValueError("pairs of two videos and no reference is given")
        conditional, anchor, records = video_loss(
            join_rows(token_logps.sum(-1), target_mask),
            video_pairs(target_mask),
            reference if objective.uses_reference else None,
            objective.beta,
            totals["video_pairs"],
        )
        loss = loss + objective.video_weight * conditional
        metrics |= records
        if objective.video_anchor:
            loss = loss + objective.video_anchor * anchor
            metrics[VIDEO + "losses/anchor"] = anchor
    return loss, metrics | {"losses/total": loss}


def metric_names(objective: Objective) -> list[str]:
    """Return the names of the metrics that `tpo_loss` gives."""

    def metrics() -> dict[str, jax.Array]:
        logps = jnp.zeros((2, 1, objective.answers, 1))
        labelled = jnp.ones(logps.shape, bool)
        return tpo_loss(
            logps,
            labelled,
            jnp.zeros((2, 1, 4 if objective.uses_phrases else 2)),
            objective,
            denominators(labelled, objective.uses_videos),
            phrase_mask=labelled,
            token_kl=logps[:, :, 0],
        )[1]

    return sorted(jax.eval_shape(metrics))


def _pairs(
    token_logps: jax.Array,
    lengths: jax.Array,
    present: jax.Array,
    reference: jax.Array | None,
    objective: Objective,
    phrase_mask: jax.Array | None,
) -> Pairs:
    """Return what the losses read; absent pairs get values at which every gradient is finite."""
    policy = jnp.where(present[..., None], token_logps.sum(-1), -1.0)
    whole, phrases = jnp.zeros_like(policy), None
    if not objective.uses_reference:
        reference = None
    elif reference is None:
        raise ValueError(f"objective.loss={objective.loss!r} and no reference is given")
    else:
        whole = jnp.where(present[..., None], reference[..., :2], -1.0)
    if objective.uses_phrases:
        if phrase_mask is None:
            raise ValueError(f"objective.loss={objective.loss!r} and no phrase_mask is given")
        phrases = jnp.where(phrase_mask, token_logps, 0.0).sum(-1)
        if reference is not None:
            phrases -= reference[..., 2:]
    return Pairs(policy, whole, jnp.maximum(lengths, 1.0), phrase_log_ratios=phrases)


def _records(
    pairs: Pairs,
    lengths: jax.Array,
    objective: Objective,
    mean: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """Return the metrics of the pairs."""
    policy, reference = pairs.policy, pairs.reference
    # Losses without a reference reward the mean log-probability.
    per_token = set(objective.terms) <= set(WITHOUT_REFERENCE)
    rewards = objective.beta * (policy / pairs.lengths if per_token else pairs.log_ratios)
    metrics = margins(policy, rewards, mean) | {
        "lengths/rejected": mean(lengths[..., 1]),
    }
    if objective.uses_reference:
        metrics |= {
            "ref_logps/chosen": mean(reference[..., 0]),
            "ref_logps/rejected": mean(reference[..., 1]),
            # If the answers were sampled from the reference, an estimate of
            # KL(reference || policy) per answer.
            "kl/chosen": mean(reference[..., 0] - policy[..., 0]),
            "kl/rejected": mean(reference[..., 1] - policy[..., 1]),
        }
    return metrics
