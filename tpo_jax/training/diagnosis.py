"""Warnings about a run: rules that read its curves, each with its evidence.

A rule is a pure function of a `Run` that returns a `Finding`, or None without one or without enough
records. Metrics are means over batches, so a rule that compares them accounts for their noise.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from tpo_jax.training.run_record import ENOUGH, Run


@dataclasses.dataclass(frozen=True)
class Finding:
    """A warning: what is wrong, the numbers that show it, and what to do."""

    title: str
    evidence: str
    advice: str


def _fifths(values: np.ndarray) -> tuple[float, float, float]:
    """Return mean of the first fifth, mean of the last, standard error of their difference."""
    size = max(2, len(values) // 5)
    first, last = values[:size], values[-size:]
    error = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / size)
    return float(first.mean()), float(last.mean()), error


def _rises(values: np.ndarray) -> bool:
    first, last, error = _fifths(values)
    return last - first > 3 * error


def chosen_falls(run: Run) -> Finding | None:
    """Warn if chosen answers lose probability while margins grow: rejected ones only lose more."""
    margins, lost = run.get("rewards/margins"), run.get("kl/chosen")
    if margins is None or lost is None:
        return None
    before, now, _ = _fifths(lost)
    if not (_rises(margins) and _rises(lost) and now > 1):
        return None
    start, end, _ = _fifths(margins)
    return Finding(
        "Chosen log-probabilities fall while margins rise",
        f"chosen answers went from {-before:+.2f} to {-now:+.2f} nats against the reference, "
        f"margins from {start:.2f} to {end:.2f}",
        f"raise objective.alpha (now {run.field('objective.alpha')}), which supports chosen "
        f"answers, or lower train.learning_rate (now {run.field('train.learning_rate')})",
    )


def length_exploited(run: Run) -> Finding | None:
    """Warn if batches whose answers differ more in length have larger margins."""
    margins = run.get("rewards/margins")
    chosen, rejected = run.get("lengths/chosen"), run.get("lengths/rejected")
    if margins is None or chosen is None or rejected is None:
        return None
    half = len(margins) // 2  # early margins grow for other reasons
    time = np.arange(len(margins) - half)

    def without_trend(values: np.ndarray) -> np.ndarray:
        return values[half:] - np.polyval(np.polyfit(time, values[half:], 1), time)

    a, b = without_trend(margins), without_trend(chosen - rejected)
    spread = a.std() * b.std()
    if len(time) < ENOUGH or spread < 1e-9:
        return None
    r = float((a * b).mean() / spread)
    score = abs(r) * math.sqrt((len(time) - 3) / max(1 - r * r, 1e-9))
    if abs(r) < 0.5 or score < 4:
        return None
    return Finding(
        "Margins follow the difference in length",
        f"over the last {len(time)} records the margin of a batch and chosen minus rejected "
        f"tokens have a correlation of {r:+.2f}",
        "check why one side is longer; balance the lengths of the pairs, or use a "
        "loss per token (objective.loss=sigmoid_norm, simpo)",
    )


def lengths_differ(run: Run) -> Finding | None:
    """Warn if one side of the data is much longer: length is then the easiest feature to learn."""
    chosen, rejected = run.get("lengths/chosen"), run.get("lengths/rejected")
    if chosen is None or rejected is None:
        return None
    longer, shorter = sorted((("chosen", chosen.mean()), ("rejected", rejected.mean())),
                             key=lambda side: -side[1])  # fmt: skip
    if longer[1] < 1.5 * shorter[1]:
        return None
    return Finding(
        f"The {longer[0]} answers are much longer",
        f"{longer[1]:.1f} tokens on average against {shorter[1]:.1f}",
        "the model can tell them apart by length alone: balance the lengths of the pairs, or use "
        "a loss per token (objective.loss=sigmoid_norm, simpo)",
    )


def too_easy(run: Run) -> Finding | None:
    """Warn if nearly all pairs are right early in the run."""
    accuracy = run.get("rewards/accuracies")
    if accuracy is None or len(accuracy) < 2 * ENOUGH:
        return None
    size = len(accuracy)
    early = accuracy[size // 10 : 3 * size // 10]  # after the first records, before the middle
    if early.mean() < 0.99:
        return None
    return Finding(
        "All pairs are right from early on",
        f"accuracy {early.mean():.3f} between steps {run.steps[size // 10]} and "
        f"{run.steps[3 * size // 10]}",
        "the pairs teach little: check whether form, length or words give rejected answers away, "
        "and whether the reference is the model that the run started from",
    )


def first_loss(run: Run) -> Finding | None:
    """Warn if the first loss is not ln 2, its value when policy and reference are equal."""
    loss = run.series.get("losses/dpo")
    if loss is None or run.steps[0] != 1 or not math.isfinite(loss[0]):
        return None
    if run.field("objective.reference_free") is True or abs(loss[0] - math.log(2)) < 0.01:
        return None
    if run.field("data.reference_view") == "anchor":  # the same weights see other frames
        return None
    if run.field("model.reference") not in ("", "?"):  # other weights
        return None
    return Finding(
        "The first loss is not ln 2",
        f"losses/dpo is {loss[0]:.4f} at step 1, where policy and reference must be equal and the "
        f"loss {math.log(2):.4f}",
        "the reference log-probabilities are not those of the weights that the run started from: "
        "check data.reference, or delete the cache beside the shards",
    )


def margins_flat(run: Run) -> Finding | None:
    """Warn if margins do not grow."""
    margins = run.get("rewards/margins")
    if margins is None or len(margins) < 2 * ENOUGH:
        return None
    _, now, error = _fifths(margins)
    if now > max(3 * error, 0.01):
        return None
    return Finding(
        "Margins stay flat",
        f"margin {now:+.4f} over the last fifth of the records, with a standard error of "
        f"{error / math.sqrt(2):.4f}",
        f"raise train.learning_rate (now {run.field('train.learning_rate')}) or train "
        "longer; inspect a few pairs: do the frames show why the chosen answers are better?",
    )


def saturated(run: Run) -> Finding | None:
    """Warn if margins are so large that the sigmoid's gradient vanishes."""
    margins = run.get("rewards/margins")
    if margins is None or _fifths(margins)[1] < 10:
        return None
    return Finding(
        "Margins are beyond the range of the loss",
        f"margin {_fifths(margins)[1]:.1f} over the last fifth of the records; the gradient of "
        f"the sigmoid is below {math.exp(-10):.0e} from 10 on",
        "stop earlier (train.num_epochs), lower train.learning_rate, or raise objective.beta, "
        "which keeps the policy closer to its reference",
    )


def gradient_jumps(run: Run) -> Finding | None:
    """Warn about single steps with far larger gradients, which often precede non-finite metrics."""
    norms = run.get("grad_norm")
    if norms is None:
        return None
    settled = norms[len(norms) // 10 :]
    worst, usual = int(settled.argmax()), float(np.median(settled))
    if settled[worst] < 20 * usual:
        return None
    return Finding(
        "The gradient norm jumps",
        f"{settled[worst]:.3g} at step {run.steps[len(norms) // 10 + worst]}, median {usual:.3g}",
        "longer warm-up (train.warmup_ratio) or a lower train.learning_rate; with float16 or "
        "bfloat16 check that step's pairs for answers of extreme length",
    )


def input_bound(run: Run) -> Finding | None:
    """Warn if the devices wait for batches."""
    spent = run.account.seconds
    at_work = spent["step"] + spent["lost"] + spent["input_wait"]
    if spent["input_wait"] < 0.1 * at_work or at_work < 10:
        return None
    return Finding(
        "Input-bound",
        f"the devices waited {spent['input_wait']:.0f} s for batches and worked "
        f"{at_work - spent['input_wait']:.0f} s",
        f"use more decoding processes (data.workers, now {run.field('data.workers')}), shards "
        "on a faster disk, or fewer frames",
    )


def work_lost(run: Run) -> Finding | None:
    """Warn if kills cost more than checkpoints would."""
    spent, wall = run.account.seconds, run.account.wall
    if spent["lost"] < 0.05 * wall or run.account.starts < 2:
        return None
    return Finding(
        "Steps are lost in restarts",
        f"{spent['lost']:.0f} s of steps were repeated after {run.account.starts - 1} restarts, "
        f"{100 * spent['lost'] / wall:.0f} % of the run's life",
        f"save more often: train.checkpoint_every (now {run.field('train.checkpoint_every')})",
    )


def checkpoint_bound(run: Run) -> Finding | None:
    """Warn if saving takes much of the time."""
    spent = run.account.seconds
    if spent["checkpoint"] < 0.1 * (spent["step"] + spent["lost"]) or spent["checkpoint"] < 10:
        return None
    return Finding(
        "Checkpoints take long",
        f"{spent['checkpoint']:.0f} s of waiting beside {spent['step'] + spent['lost']:.0f} s of "
        "steps",
        f"save less often: train.checkpoint_every (now {run.field('train.checkpoint_every')})",
    )


def compiles_again(run: Run) -> Finding | None:
    """Warn if a start compiles more than the step and the evaluation: shapes change."""
    compiled = run.series.get("time/compile")
    if compiled is None:
        return None
    times = int((compiled > 0).sum())
    programs = 1 + any(name.startswith("eval/") for name in run.series)
    if times <= programs * run.account.starts:
        return None
    steps = ", ".join(str(step) for step in run.steps[compiled > 0][:5])
    return Finding(
        "The step is compiled again and again",
        f"{times} records have time/compile above 0 (steps {steps}) in {run.account.starts} starts",
        "shapes of batches must not change: report it, with DIR/config.json",
    )


def pairs_skipped(run: Run) -> Finding | None:
    """Warn if pairs were left out because they cannot be decoded."""
    skipped = run.series.get("skipped")
    if skipped is None or not skipped[-1] > 0:
        return None
    return Finding(
        "Pairs are skipped",
        f"{skipped[-1]:.0f} times a pair could not be decoded, up to step {run.steps[-1]}",
        "the log names them: prepare these shards again, and check their disk",
    )


RULES: tuple[Callable[[Run], Finding | None], ...] = (
    first_loss,
    chosen_falls,
    margins_flat,
    too_easy,
    saturated,
    length_exploited,
    lengths_differ,
    gradient_jumps,
    input_bound,
    checkpoint_bound,
    work_lost,
    compiles_again,
    pairs_skipped,
)


def diagnose(run: Run) -> list[Finding]:
    """Return what the rules find, the most severe first."""
    return [finding for rule in RULES if (finding := rule(run))]
