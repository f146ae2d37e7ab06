"""Metrics over held-out pairs: the objective's, as if all of these pairs were one batch.

Every metric is a sum over pairs divided by their number, or a sum over chosen tokens divided by
theirs, or over pairs of two videos by theirs (`objectives/preference.py`). Batches are therefore
evaluated with denominators of 1; the sums are added up and divided at the end. Padding and pairs
that cannot be decoded weigh nothing.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpo_jax.data.pipeline import Pipeline
from tpo_jax.models.batch import Batch
from tpo_jax.objectives.conditional import VIDEO
from tpo_jax.objectives.preference import Objective, counts, mean_log_ratios, tpo_loss
from tpo_jax.parallel.programs import built_once
from tpo_jax.training.feed import Feed
from tpo_jax.training.state import TrainState

PREFIX = "eval/"


@built_once
def make_evaluator(
    forward: Callable[..., dict[str, Any]], objective: Objective
) -> Callable[..., dict[str, Any]]:
    """Build `evaluate(state, batch, log_ratios, reference=None)`, a batch's shares of the metrics.

    Args:
        forward: Of `step.make_forward`.

    Returns:
        The function. Its `log_ratios`, float32 `[2]`, are the means of chosen and rejected
        answers over all pairs, for losses that read them. It returns float32 scalars:
        counts `pairs`, `tokens` and, if the objective has them, `video_pairs`; in `shares`, under
        each of these names, the shares of the metrics that this count divides; and `log_ratios`,
        float32 `[2]`, the batch's share of the mean log-ratios, if the objective uses them.
    """
    one, never = jnp.float32(1), jnp.float32(jnp.inf)  # infinity leaves a metric out

    def evaluate(
        state: TrainState, batch: Batch, log_ratios: jax.Array, reference: dict | None = None
    ) -> dict[str, Any]:
        found = forward(state.params, state.frozen, batch, reference)
        mask = found["target_mask"]
        whole = {"mean_log_ratios": log_ratios} if objective.uses_mean_log_ratios else {}
        counted: dict[str, Any] = {
            name: count.astype(jnp.float32) for name, count in counts(mask, objective.uses_videos)
        }
        nothing = dict.fromkeys(counted, never)

        def shares(name: str) -> dict[str, jax.Array]:
            totals = nothing | {name: one} | whole
            return tpo_loss(objective=objective, totals=totals, **found)[1]

        counted["shares"] = {name: shares(name) for name in nothing}
        if objective.uses_mean_log_ratios:
            logps, known = found["token_logps"], found["reference"]
            counted["log_ratios"] = mean_log_ratios(logps, mask, known, {"pairs": one})
        return counted

    return evaluate


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out pairs and the program that evaluates a batch of them.

    Attributes:
        pipeline: Of the pairs, one epoch.
        feed: Puts its batches on the mesh.
        evaluate: Jitted function of `make_evaluator`, its results replicated.
        objective: That of `evaluate`.
    """

    pipeline: Pipeline
    feed: Feed
    evaluate: Callable[..., dict[str, Any]]
    objective: Objective

    def metrics(self, state: TrainState) -> dict[str, float]:
        """Return the metrics of a train state over all held-out pairs, names without `eval/`; those
        of pairs of two videos only if one is held out.

        All processes must call this together.
        """
        sums = self._sums(state, np.zeros(2, np.float32))
        if self.objective.uses_mean_log_ratios:
            # Every pair's loss depends on all of them: one more forward pass.
            mean = sums["log_ratios"] / max(sums["pairs"], 1)
            sums = self._sums(state, mean.astype(np.float32))
        shares = sums["shares"]
        found = {
            name: float(sum(share[name] / max(sums[kind], 1) for kind, share in shares.items()))
            for name in shares["pairs"]
        }
        found["pairs"] = float(sums["pairs"])
        if not self.objective.uses_videos:
            return found
        if not sums["video_pairs"]:
            return {name: value for name, value in found.items() if not name.startswith(VIDEO)}
        return found | {VIDEO + "pairs": float(sums["video_pairs"])}

    def _sums(self, state: TrainState, log_ratios: np.ndarray) -> dict[str, Any]:
        total: Any = 0.0
        with contextlib.closing(iter(self.pipeline)) as batches:
            for batch in batches:
                shares = jax.device_get(self.evaluate(state, self.feed.put(batch), log_ratios))
                shares = jax.tree.map(np.float64, shares)
                total = jax.tree.map(np.add, total, shares) if total else shares
        return total
