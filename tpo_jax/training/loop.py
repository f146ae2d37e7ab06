"""The loop: batches through the jitted step; metrics, evaluations and checkpoints out."""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from tpo_jax.checkpoints.train_state import TrainCheckpoints
from tpo_jax.data.batches import BatchIterator
from tpo_jax.errors import InputError
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.distributed import StopRequest
from tpo_jax.training.clock import StepClock
from tpo_jax.training.feed import Feed
from tpo_jax.training.held_out import PREFIX, HeldOut
from tpo_jax.training.recorder import Recorder
from tpo_jax.training.state import TrainState
from tpo_jax.training.watch import Profiler


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long the loop runs, and how often it writes something."""

    num_steps: int
    log_every: int = 10
    eval_every: int = 0  # 0: never

    def __post_init__(self) -> None:
        for name in ("num_steps", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)} must be above 0")
        if self.eval_every < 0:
            raise InputError(f"train.eval_every={self.eval_every} must not be negative")

    def logs(self, step: int) -> bool:
        """Return whether a step has a record; step 1 has: its loss of ln 2 checks the reference."""
        return step in (1, self.num_steps) or step % self.log_every == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Return whether held-out pairs are evaluated after a step."""
        if not self.eval_every:
            return False
        return step == self.num_steps or step % self.eval_every == 0


def run(
    config: LoopConfig,
    step_fn: Callable[[TrainState, Batch], tuple[TrainState, dict]],
    state: TrainState,
    batches: BatchIterator,
    feed: Feed,
    checkpoints: TrainCheckpoints,
    recorder: Recorder,
    held_out: HeldOut | None = None,
) -> TrainState:
    """Train from the state's step to `config.num_steps`.

    Args:
        step_fn: Jitted `(state, batch) -> (state, metrics)`.
        state: On the mesh; donated.
        batches: This host's part of every batch, positioned where the state is.
        held_out: Pairs to evaluate; None if `config.eval_every` is 0.

    Returns:
        The state; before `num_steps` if SIGTERM or SIGINT asked to stop, with a checkpoint saved.

    Raises:
        InputError: A metric is not finite; names step, pairs and the checkpoint to return to.
        OSError: No checkpoint can be written, twice in a row or at the end.
    """
    step = noted = int(state.step)
    recent: list[tuple[int, np.ndarray, dict]] = []  # step, pairs, metrics not yet examined
    trained = 0  # pairs since the last record
    spent: dict[str, float] = {}  # seconds since the last record

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(feed.mesh))
        stack.enter_context(recorder.open(step, config.num_steps))
        profiler = Profiler(recorder.watch.profiled, recorder.workdir / "profile")
        stack.enter_context(contextlib.closing(profiler))
        clock = stack.enter_context(contextlib.closing(StepClock()))
        stop, stopping = stack.enter_context(StopRequest()), False
        while step < config.num_steps and not stopping:
            with clock.span("input_wait"):
                batch = next(batches)
            index = np.asarray(batch.pair_index)
            # A pair of two videos has a chosen answer in its first row only.
            there = np.asarray(batch.target_mask)[:, :, 0].any(-1)
            trained += int(there.sum()) * jax.process_count()
            step += 1
            profiler.before(step)
            state, metrics = clock.dispatch(step_fn, state, feed.put(batch))
            profiler.after(step, metrics)
            recent.append((step, index[there], metrics))

            stopping = stop.reached(step)
            last = step == config.num_steps or stopping
            save = last or checkpoints.due(step)
            if not (config.logs(step) or save):
                continue
            scalars = _finite(recent, feed, checkpoints)
            recent.clear()
            batches.skipped += int(scalars["skipped"])
            scalars["skipped"] = batches.skipped
            scalars |= feed.about(batch)
            if held_out and config.evaluates(step):
                with clock.span("eval"):
                    scalars |= _evaluated(held_out, state, step, checkpoints)
            seconds = clock.split()
            spent = {name: spent.get(name, 0.0) + value for name, value in seconds.items()}
            recorder.note_time(noted, step, seconds)
            noted = step
            if config.logs(step):
                recorder.write(step, scalars, trained, spent)
                spent, trained = {}, 0
            if save:
                with clock.span("checkpoint"):
                    position = batches.get_state()
                    checkpoints.save(
                        step, state.moving, position, recorder.meta, scalars, last=last
                    )
        recorder.note_time(step, step, clock.split())
    return state


def _evaluated(
    held_out: HeldOut, state: TrainState, step: int, checkpoints: TrainCheckpoints
) -> dict[str, float]:
    """Return the metrics over held-out pairs under their names in a record.

    Raises:
        InputError: One of them is not finite.
    """
    scalars = {PREFIX + name: value for name, value in held_out.metrics(state).items()}
    if bad := sorted(name for name, value in scalars.items() if not math.isfinite(value)):
        raise InputError(
            f"step {step}: {', '.join(bad)} not finite; last good checkpoint: "
            f"{_last_good(checkpoints)}"
        )
    return scalars


def _finite(
    recent: list[tuple[int, np.ndarray, dict]], feed: Feed, checkpoints: TrainCheckpoints
) -> dict[str, float]:
    """Return the metrics of the last of these steps; `skipped` is the sum over all of them.

    Raises:
        InputError: One of them has a metric that is not finite.
    """
    scalars: dict[str, float] = {}
    skipped = 0.0
    for (step, index, _), metrics in zip(
        recent, jax.device_get([metrics for _, _, metrics in recent]), strict=True
    ):
        scalars = {name: float(value) for name, value in metrics.items()}
        scalars["skipped"] = skipped = skipped + scalars["skipped"]
        if bad := sorted(name for name, value in scalars.items() if not math.isfinite(value)):
            raise InputError(
                f"step {step}: {', '.join(bad)} not finite; pairs of this host's batch: "
                f"{feed.names(index)}; last good checkpoint: {_last_good(checkpoints)}"
            )
    return scalars


def _last_good(checkpoints: TrainCheckpoints) -> str:
    step = checkpoints.latest_step
    return "none" if step is None else f"step {step}"
