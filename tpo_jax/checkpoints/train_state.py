"""Checkpoints of a training run: `{state, data, meta}` by Orbax, asynchronous, the last n kept.

`state` is the sharded train state, `data` the position of the input pipeline and `meta` what the
run must agree with when it resumes; the latter two are JSON.
"""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from tpo_jax.errors import InputError


class TrainCheckpoints:
    """The checkpoints of one working directory."""

    def __init__(self, directory: str | Path, *, every_steps: int, keep: int):
        """Opens (or makes) the directory.

        Args:
            directory: holds one folder per saved step.
            every_steps: a checkpoint is due at multiples of this step.
            keep: how many of the newest remain.
        """
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
        context = ocp.Context()
        context.checkpointables.registry = registry
        policies = ocp.training.save_decision_policies
        self._checkpointer = ocp.training.Checkpointer(
            Path(directory).absolute(),
            context=context,
            save_decision_policy=policies.FixedIntervalPolicy(every_steps),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: dict, data: dict, meta: dict, *, force: bool = False) -> None:
        """Saves if due (or forced) and not there yet; returns once the arrays are copied off the
        devices.
        """
        if step != self.latest_step and (force or self._checkpointer.should_save(step)):
            self._checkpointer.save_checkpointables_async(
                step, {"state": state, "data": data, "meta": meta}, force=force
            )

    def latest_meta(self) -> dict | None:
        """`meta` of the newest checkpoint, None if there is none; no array is read."""
        if self.latest_step is None:
            return None
        return self._checkpointer.load_checkpointables(self.latest_step, {"meta": None})["meta"]

    def restore(self, abstract_state: Any) -> tuple[dict, dict]:
        """(state, data) of the newest checkpoint, the state laid out as the abstract one says.

        Args:
            abstract_state: `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            InputError: the checkpoint holds another state than this config describes.
        """
        step = self.latest_step
        try:
            found = self._checkpointer.load_checkpointables(
                step, {"state": abstract_state, "data": None}
            )
        except (ValueError, KeyError) as error:
            raise InputError(
                f"checkpoint of step {step} does not hold the state of this config: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return jax.block_until_ready(found["state"]), found["data"]

    def close(self) -> None:
        """Waits for the checkpoint being written."""
        self._checkpointer.close()
