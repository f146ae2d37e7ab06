"""The loop: batches through the jitted step, metrics and checkpoints out."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from tpo_jax.checkpoints.train_state import TrainCheckpoints
from tpo_jax.data.batches import BatchIterator
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.distributed import StopRequest
from tpo_jax.parallel.sharding import to_global
from tpo_jax.training.clock import StepClock
from tpo_jax.training.goodput import GoodputJournal
from tpo_jax.training.metrics import MetricsWriter, Progress
from tpo_jax.training.state import TrainState
from tpo_jax.training.watch import Profiler, Watch, device_memory, wandb_run


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often something is written."""

    num_steps: int
    log_every: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(f"train.{field.name}={getattr(self, field.name)} must be above 0")


def run(
    config: LoopConfig,
    step_fn: Callable[[TrainState, Batch], tuple[TrainState, dict]],
    state: TrainState,
    batches: BatchIterator,
    pairs: Sequence[PairRecord],
    reference: np.ndarray | None,
    mesh: jax.sharding.Mesh,
    checkpoints: TrainCheckpoints,
    meta: dict,
    schedule: Callable[[int], float],
    workdir: Path,
    watch: Watch,
    journal: GoodputJournal | None,
) -> TrainState:
    """Trains from the state's step to `config.num_steps`.

    Args:
        config: see `LoopConfig`.
        step_fn: jitted `(state, batch) -> (state, metrics)`.
        state: on the mesh; donated.
        batches: this host's part of every batch, standing where the state stands.
        pairs: of the shards, to name them by `pair_index`.
        reference: float32 `[pairs, 2 or 4]` by `pair_index`, None if the objective needs no cache.
        mesh: devices.
        checkpoints: where to save.
        meta: saved with every checkpoint.
        schedule: learning rate of a step, for the record.
        workdir: for the metrics.
        watch: profile, Weights & Biases.
        journal: where process 0 notes where the time went, None on others.

    Returns:
        The state; short of `num_steps` if SIGTERM or SIGINT asked to stop, with a checkpoint saved.

    Raises:
        InputError: a metric is not finite, with step, pairs and the checkpoint to go back to.
        OSError: no checkpoint can be written, twice in a row or at the end.
    """
    step = first_step = noted = int(state.step)
    progress = Progress(first_step, config.num_steps)
    recent: list[tuple[int, np.ndarray, dict]] = []  # step, pairs, metrics not looked at yet
    trained = 0
    spent: dict[str, float] = {}  # seconds since the last record

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        writer = None
        if jax.process_index() == 0:
            board = None
            if watch.wandb_project:
                board = wandb_run(watch.wandb_project, workdir, meta["config"])
            metrics_writer = MetricsWriter(workdir, first_step, board)
            writer = stack.enter_context(contextlib.closing(metrics_writer))
        profiler = Profiler(watch.profiled, workdir / "profile")
        stack.enter_context(contextlib.closing(profiler))
        clock = stack.enter_context(contextlib.closing(StepClock()))
        stop, stopping = stack.enter_context(StopRequest()), False
        while step < config.num_steps and not stopping:
            with clock.span("input_wait"):
                batch = next(batches)
            index = np.asarray(batch.pair_index)
            trained += int((index >= 0).sum()) * jax.process_count()
            if reference is not None:
                rows = _rows(reference, index, pairs)
                batch = dataclasses.replace(batch, reference_logps=rows)
            step += 1
            profiler.before(step)
            state, metrics = clock.dispatch(step_fn, state, to_global(batch, mesh))
            profiler.after(step, metrics)
            if step == first_step + 1:
                checkpoints.check_metric(metrics)
            recent.append((step, index[index >= 0], metrics))

            stopping = stop.reached(step)
            last = step == config.num_steps
            log = last or step == 1 or step % config.log_every == 0  # the first loss tells much
            save = last or stopping or checkpoints.due(step)
            if not (log or save):
                continue
            scalars = _finite(recent, pairs, checkpoints)
            recent.clear()
            batches.skipped += int(scalars["skipped"])
            scalars["skipped"] = batches.skipped
            seconds = clock.split()
            spent = {name: spent.get(name, 0.0) + value for name, value in seconds.items()}
            if journal:
                journal.add(noted, step, seconds)
            noted = step
            if log:
                total = sum(spent.values())
                scalars |= {
                    "learning_rate": float(schedule(step - 1)),
                    "pairs/s": trained / total,
                    **{f"time/{name}": value / total for name, value in spent.items()},
                    **device_memory(),
                }
                if writer and journal:
                    scalars["time/goodput"] = journal.account.goodput
                    writer.write(step, scalars)
                    progress.show(step, scalars, spent)
                spent, trained = {}, 0
            if save:
                position, final = batches.get_state(), last or stopping
                with clock.span("checkpoint"):
                    checkpoints.save(step, vars(state), position, meta, scalars, last=final)
        if journal:
            journal.add(step, step, clock.split())
    return state


def _rows(reference: np.ndarray, index: np.ndarray, pairs: Sequence[PairRecord]) -> np.ndarray:
    """Rows of the cache `[B, Q, 2 or 4]`, 0 where there is no pair.

    Raises:
        InputError: the cache has none for a pair, which could not be decoded then.
    """
    found = np.where(index[..., None] >= 0, reference[np.maximum(index, 0)], 0)
    if np.isnan(found).any():
        position = index[np.isnan(found).any(-1)][0]
        raise InputError(
            f"pair {pairs[position].id!r} could not be decoded when the reference was computed and "
            "can be now: remove the reference-*.npz beside the shards"
        )
    return found


def _finite(
    recent: list[tuple[int, np.ndarray, dict]],
    pairs: Sequence[PairRecord],
    checkpoints: TrainCheckpoints,
) -> dict[str, float]:
    """Metrics of the last of these steps; `skipped` is of all of them.

    Raises:
        InputError: one of them has a metric that is not finite.
    """
    scalars: dict[str, float] = {}
    skipped = 0.0
    for (step, index, _), metrics in zip(
        recent, jax.device_get([metrics for _, _, metrics in recent]), strict=True
    ):
        scalars = {name: float(value) for name, value in metrics.items()}
        scalars["skipped"] = skipped = skipped + scalars["skipped"]
        if bad := sorted(name for name, value in scalars.items() if not math.isfinite(value)):
            good = checkpoints.latest_step
            raise InputError(
                f"step {step}: {', '.join(bad)} not finite; pairs of this host's batch: "
                f"{', '.join(pairs[i].id for i in index)}; last good checkpoint: "
                f"{'none' if good is None else f'step {good}'}"
            )
    return scalars
