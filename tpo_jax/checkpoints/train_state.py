"""Checkpoints of a training run: `{state, data, meta}` by Orbax, written in the background.

`state` is what steps change of the sharded train state, `data` the position of the input pipeline
and `meta` what the run must agree with when it resumes; the latter two are JSON. A checkpoint is
written under a temporary name and renamed when it is whole. `docs/reliability.md` says what happens
when it cannot be written or read.
"""

import dataclasses
import datetime
import itertools
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from tpo_jax.errors import InputError

_TEMPORARY = ".orbax-checkpoint-tmp"
# What Orbax and TensorStore raise for a disk that is full or read-only, or files that are not there
# or cut off.
_UNWRITABLE = (OSError, ValueError, RuntimeError)
_UNREADABLE = (OSError, ValueError, KeyError)


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """When a checkpoint is due, and which ones remain."""

    checkpoint_every: int = 100  # at multiples of this step; 0: not by steps
    checkpoint_minutes: float = 0.0  # so long after the last one; 0: not by time
    keep_checkpoints: int = 2  # how many of the newest
    keep_best: str = ""  # one more, by a metric: "max:NAME" or "min:NAME"

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "checkpoint_minutes"):
            if not getattr(self, name) >= 0:  # also rejects NaN
                raise InputError(f"train.{name}={getattr(self, name)} must not be negative")
        if self.keep_checkpoints < 1:
            raise InputError(f"train.keep_checkpoints={self.keep_checkpoints} must be above 0")
        direction, _, metric = self.keep_best.partition(":")
        if self.keep_best and not (direction in ("min", "max") and metric):
            raise InputError(
                f"train.keep_best={self.keep_best!r} must be min:NAME or max:NAME of a metric"
            )

    def check_metric(self, names: Iterable[str]) -> None:
        """Check that the metric of `keep_best` is among these.

        Raises:
            InputError: it is not; the message names those there are.
        """
        if self.keep_best and self.metric not in names:
            raise InputError(
                f"train.keep_best={self.keep_best!r}: no such metric; there are "
                f"{', '.join(sorted(names))}"
            )

    @property
    def metric(self) -> str:
        """The name in `keep_best`."""
        return self.keep_best.partition(":")[2]


@dataclasses.dataclass(kw_only=True)
class _EveryMinutes(ocp.training.save_decision_policies.ContinuousCheckpointingPolicy):
    """Process 0 decides for all. The clock starts with the process and with every attempt: Orbax's
    own counts from the last checkpoint on disk, and would try again at once when one fails.
    """

    since: datetime.datetime

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        last = dataclasses.replace(step, time=self.since)
        context = dataclasses.replace(context, is_saving_in_progress=False)
        return super().should_save(step, [last], context=context)


class TrainCheckpoints:
    """The checkpoints of one working directory."""

    def __init__(self, directory: str | Path, policy: CheckpointPolicy):
        """Open (or make) the directory, and remove what a killed run had not finished."""
        self._directory, self._policy = Path(directory).absolute(), policy
        self._writing: int | None = None
        self._failed = False  # whether the last one could not be written
        self._clock = _EveryMinutes(
            minimum_interval_secs=60 * policy.checkpoint_minutes, since=_now()
        )
        saving, keeping = ocp.training.save_decision_policies, ocp.training.preservation_policies
        due, kept = [], [keeping.LatestN(policy.keep_checkpoints)]
        if policy.checkpoint_every:
            due.append(saving.FixedIntervalPolicy(policy.checkpoint_every))
        if policy.checkpoint_minutes:
            due.append(self._clock)
        if policy.keep_best:
            best = keeping.BestN(
                get_metric_fn=lambda metrics: metrics[policy.metric],
                reverse=policy.keep_best.startswith("min"),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
        context = ocp.Context()
        # Otherwise threads of a checkpoint whose folder cannot be made wait five minutes for it,
        # and the process cannot end before them.
        context.asynchronous.create_directories_asynchronously = False
        context.checkpointables.registry = registry
        logging.get_absl_logger().addFilter(_is_news)
        for step in self._remove_unfinished():
            _note(f"the checkpoint of step {step} was not finished and is removed")
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            context=context,
            save_decision_policy=saving.AnySavePolicy(due),
            preservation_policy=keeping.AnyPreservationPolicy(kept),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def due(self, step: int) -> bool:
        """Return whether to save now; all processes must call this after every step."""
        if self._writing is not None and not self._checkpointer.is_saving_in_progress():
            self._finish()
        return self._checkpointer.should_save(step)

    def save(
        self,
        step: int,
        state: dict,
        data: dict,
        meta: dict,
        metrics: dict[str, float],
        *,
        last: bool = False,
    ) -> None:
        """Save a checkpoint in the background, unless there is one of this step.

        Return once the arrays are copied off the devices; for the last checkpoint of a run, and
        after one that failed, once everything is on disk.

        Raises:
            OSError: the last checkpoint, or a second one in a row, cannot be written.
        """
        self._finish()
        once_more = self._failed
        if step != self.latest_step:
            best = self._policy.metric
            self._clock.since, self._writing = _now(), step
            try:
                self._checkpointer.save_checkpointables_async(
                    step,
                    {"state": state, "data": data, "meta": meta},
                    force=True,
                    metrics={best: metrics[best]} if best in metrics else None,
                )
            except _UNWRITABLE as error:
                self._give_up(error, last or once_more)
        if last or once_more:
            self._finish(fatal=True)

    def _finish(self, fatal: bool = False) -> None:
        """Wait for the checkpoint being written."""
        if self._writing is None:
            return
        try:
            self._checkpointer.wait()
        except _UNWRITABLE as error:
            self._give_up(error, fatal)
        else:
            self._writing, self._failed = None, False

    def _give_up(self, error: Exception, fatal: bool) -> None:
        step, self._writing, self._failed = self._writing, None, True
        self._remove_unfinished()  # its files take the space of the next
        self._checkpointer.reload()
        text = f"the checkpoint of step {step} cannot be written: {_reason(error)}"
        if fatal:
            raise OSError(f"{text}; last complete checkpoint: {_named(self.latest_step)}")
        _note(f"{text}; training continues until the next one is due")

    def latest_meta(self) -> dict | None:
        """Return the newest readable `meta`, None without checkpoints.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        found = self._newest({"meta": None})
        return None if found is None else found[1]["meta"]

    def restore(self, abstract_state: Any) -> tuple[dict, dict]:
        """Return (state, data) of the newest checkpoint that can be read.

        Newer ones are reported and renamed to `<step>.broken`, or `<step>.broken.2` and so on where
        that step was broken before.

        Args:
            abstract_state: `jax.ShapeDtypeStruct`s with the shardings to restore to.

        Raises:
            InputError: none can be read as the state of this config.
        """
        found = self._newest({"state": abstract_state, "data": None, "meta": None})
        if found is None:
            raise InputError(f"{self._directory}: no checkpoint to restore")
        step, parts, broken = found
        if broken:
            if jax.process_index() == 0:
                for other, reason in broken.items():
                    _note(f"{reason}; going back to step {step}")
                    path = self._directory / str(other)
                    again = (f"{other}.broken.{number}" for number in itertools.count(2))
                    aside = map(path.with_name, itertools.chain([f"{other}.broken"], again))
                    path.rename(next(place for place in aside if not place.exists()))
            multihost_utils.sync_global_devices("broken checkpoints renamed")
            self._checkpointer.reload()
        return jax.block_until_ready(parts["state"]), parts["data"]

    def _newest(self, parts: dict) -> tuple[int, dict, dict[int, str]] | None:
        """Return step and parts of the newest checkpoint that all processes can read, and what is
        wrong with newer ones, by step.
        """
        broken: dict[int, str] = {}
        for checkpoint in reversed(self._checkpointer.checkpoints):
            found, reason = {}, ""
            try:
                found = self._checkpointer.load_checkpointables(checkpoint.step, parts)
            except _UNREADABLE as error:
                reason = _reason(error)
            if multihost_utils.process_allgather(np.array(not reason)).all():
                return checkpoint.step, found, broken
            reason = reason or "another process cannot read it"
            broken[checkpoint.step] = (
                f"the checkpoint of step {checkpoint.step} is broken: {reason}"
            )
        if not broken:
            return None
        raise InputError(
            f"{self._directory}: no checkpoint can be read: {'; '.join(broken.values())}; bring "
            "back a copy of one, or remove the folder to start again from step 0"
        )

    def _remove_unfinished(self) -> list[str]:
        """Remove unfinished checkpoints, on process 0, and return their steps."""
        found = []
        if jax.process_index() == 0:
            for path in sorted(self._directory.glob(f"*{_TEMPORARY}*")):
                shutil.rmtree(path, ignore_errors=True)
                found.append(path.name.partition(".")[0])
        return found

    def close(self) -> None:
        """Wait for the checkpoint being written."""
        self._finish()
        self._checkpointer.close()
        logging.get_absl_logger().removeFilter(_is_news)


def _is_news(record: Any) -> bool:
    """Return false for Orbax's logs of errors, one per thread with a stack: these are raised."""
    return not (record.exc_info and "orbax" in record.pathname)


def _now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)


def _named(step: int | None) -> str:
    return "none" if step is None else f"step {step}"


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error.args[0] if isinstance(error, KeyError) and error.args else error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
