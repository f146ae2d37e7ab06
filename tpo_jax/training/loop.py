"""The loop: batches through the jitted step, metrics and checkpoints out."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from tpo_jax.checkpoints.train_state import TrainCheckpoints
from tpo_jax.data.pipeline import BatchIterator
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.parallel.distributed import StopRequest
from tpo_jax.parallel.sharding import to_global
from tpo_jax.training.metrics import MetricsWriter, Progress


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often something is written."""

    num_steps: int
    log_every: int = 10
    checkpoint_every: int = 100

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(f"train.{field.name}={getattr(self, field.name)} must be above 0")


def run(
    config: LoopConfig,
    step_fn: Callable[[dict, dict], tuple[dict, dict]],
    state: dict,
    batches: BatchIterator,
    pairs: Sequence[PairRecord],
    reference: np.ndarray | None,
    mesh: jax.sharding.Mesh,
    checkpoints: TrainCheckpoints,
    meta: dict,
    schedule: Callable[[int], float],
    workdir: Path,
) -> dict:
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

    Returns:
        The state; short of `num_steps` if SIGTERM or SIGINT asked to stop, with a checkpoint saved.

    Raises:
        InputError: a metric is not finite, with step, pairs and the checkpoint to go back to.
    """
    step = first_step = int(state["step"])
    progress = Progress(first_step, config.num_steps)
    recent: list[tuple[int, np.ndarray, dict]] = []  # step, pairs, metrics not looked at yet
    mark, waited, trained = time.monotonic(), 0.0, 0

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        writer = None
        if jax.process_index() == 0:
            writer = stack.enter_context(contextlib.closing(MetricsWriter(workdir, first_step)))
        stop, stopping = stack.enter_context(StopRequest()), False
        while step < config.num_steps and not stopping:
            wait = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - wait
            index = batch["pair_index"]
            trained += int((index >= 0).sum()) * jax.process_count()
            if reference is not None:
                batch["reference_logps"] = np.where(index[..., None] >= 0, reference[index], 0)
            state, metrics = step_fn(state, to_global(batch, mesh))
            step += 1
            recent.append((step, index[index >= 0], metrics))
            # Two steps in flight keep the device busy; more would only pile up their batches there.
            jax.block_until_ready([metrics for _, _, metrics in recent[-2:-1]])

            stopping = stop.reached(step)
            last = step == config.num_steps
            log = last or step % config.log_every == 0
            save = last or stopping or step % config.checkpoint_every == 0
            if not (log or save):
                continue
            scalars = _finite(recent, pairs, checkpoints)
            recent.clear()
            if log:
                now = time.monotonic()
                scalars |= {
                    "learning_rate": float(schedule(step - 1)),
                    "pairs/s": trained / (now - mark),
                    "time/input_wait": waited / (now - mark),
                }
                mark, waited, trained = now, 0.0, 0
                if writer:
                    writer.write(step, scalars)
                    progress.show(step, scalars)
            if save:
                checkpoints.save(step, state, batches.get_state(), meta, force=last or stopping)
    return state


def _finite(
    recent: list[tuple[int, np.ndarray, dict]],
    pairs: Sequence[PairRecord],
    checkpoints: TrainCheckpoints,
) -> dict[str, float]:
    """Metrics of the last of these steps.

    Raises:
        InputError: one of them has a metric that is not finite.
    """
    scalars: dict[str, float] = {}
    for (step, index, _), metrics in zip(
        recent, jax.device_get([metrics for _, _, metrics in recent]), strict=True
    ):
        scalars = {name: float(value) for name, value in metrics.items()}
        if bad := sorted(name for name, value in scalars.items() if not math.isfinite(value)):
            good = checkpoints.latest_step
            raise InputError(
                f"step {step}: {', '.join(bad)} not finite; pairs of this host's batch: "
                f"{', '.join(pairs[i].id for i in index)}; last good checkpoint: "
                f"{'none' if good is None else f'step {good}'}"
            )
    return scalars
