"""The loop: batches through the jitted step, metrics and checkpoints out."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from tpo_jax.checkpoints.train_state import TrainCheckpoints
from tpo_jax.data.pipeline import BatchIterator
from tpo_jax.errors import InputError
from tpo_jax.parallel.sharding import to_global
from tpo_jax.training.metrics import MetricsWriter, Progress


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often something is written."""

    num_steps: int
    log_every: int = 10
    checkpoint_every: int = 100


class Interrupted:
    """Notes SIGTERM and SIGINT instead of dying of them, while it is entered."""

    def __enter__(self) -> "Interrupted":
        self._signal = 0
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, _) -> None:
        self._signal = number

    def __bool__(self) -> bool:
        return self._signal != 0


def run(
    config: LoopConfig,
    step_fn: Callable[[dict, dict], tuple[dict, dict]],
    state: dict,
    batches: BatchIterator,
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
        reference: float32 `[pairs, 2]` by `pair_index`, None if the objective needs none.
        mesh: devices.
        checkpoints: where to save.
        meta: saved with every checkpoint.
        schedule: learning rate of a step, for the record.
        workdir: for the metrics.

    Returns:
        The state; short of `num_steps` if SIGTERM or SIGINT asked to stop, with a checkpoint saved.

    Raises:
        InputError: the loss is not finite, with step, pairs and the checkpoint to go back to.
    """
    step = first_step = int(state["step"])
    main = jax.process_index() == 0
    writer = MetricsWriter(workdir, first_step) if main else None
    progress = Progress(first_step, config.num_steps)
    mark, waited, pairs = time.monotonic(), 0.0, 0

    with Interrupted() as interrupted:
        while step < config.num_steps and not interrupted:
            wait = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - wait
            index = batch["pair_index"]
            pairs += int((index >= 0).sum()) * jax.process_count()
            if reference is not None:
                batch["reference_logps"] = np.where(index[..., None] >= 0, reference[index], 0)
            state, metrics = step_fn(state, to_global(batch, mesh))
            step += 1

            last = step == config.num_steps or bool(interrupted)
            save = last or step % config.checkpoint_every == 0
            if not (save or step % config.log_every == 0):
                continue
            scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not all(map(math.isfinite, scalars.values())):
                bad = sorted(name for name, value in scalars.items() if not math.isfinite(value))
                raise InputError(
                    f"step {step}: {', '.join(bad)} not finite; pairs of this host's batch: "
                    f"{index[index >= 0].tolist()}; last good checkpoint: {checkpoints.latest_step}"
                )
            now = time.monotonic()
            scalars |= {
                "learning_rate": float(schedule(step - 1)),
                "pairs/s": pairs / (now - mark),
                "time/input_wait": waited / (now - mark),
            }
            mark, waited, pairs = now, 0.0, 0
            if writer:
                writer.write(step, scalars)
                progress.show(step, scalars)
            if save:
                checkpoints.save(step, state, batches.get_state(), meta, force=last)
    if writer:
        writer.close()
    return state
