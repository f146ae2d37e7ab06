"""Observing a run in progress: profile, Weights & Biases, memory. Its results do not change."""

import dataclasses
import importlib.util
import os
import re
import sys
import uuid
from pathlib import Path
from typing import Any

import jax

from tpo_jax.errors import InputError
from tpo_jax.io.files import write_text


@dataclasses.dataclass(frozen=True)
class Watch:
    """What the user asks for beyond metrics in files and on the console.

    Args:
        profile_steps: `FIRST:LAST`, steps that the profiler traces to `workdir/profile`, both
            included; empty: none.
        wandb_project: Project of Weights & Biases that also gets the metrics; empty: none.

    Raises:
        InputError: Another form, a profile that would crash, or Weights & Biases without its
            package or its key.
    """

    profile_steps: str = ""
    wandb_project: str = ""

    def __post_init__(self) -> None:
        if self.profile_steps:
            given = f"--profile_steps={self.profile_steps}"
            found = re.fullmatch(r"\d+:\d+", self.profile_steps)
            if not found or not self.profiled or self.profiled.start < 1:
                raise InputError(f"{given} must be FIRST:LAST, two steps, the first at least 1")
            # JAX loads libtpu wherever it is installed, and starting a trace then ends the process
            # with a segmentation fault if there is no TPU.
            if "libtpu" in sys.modules and (backend := jax.default_backend()) != "tpu":
                raise InputError(
                    f"{given}: libtpu is loaded without a TPU, and profiling would crash; set "
                    f"JAX_PLATFORMS={backend}"
                )
        if self.wandb_project and jax.process_index() == 0:
            given = f"--wandb_project={self.wandb_project}"
            if importlib.util.find_spec("wandb") is None:
                raise InputError(f"{given} needs the package wandb: pip install wandb")
            without_key = os.environ.get("WANDB_MODE") in ("offline", "disabled")
            if not (os.environ.get("WANDB_API_KEY") or without_key):
                raise InputError(
                    f"{given} needs a key in the environment variable WANDB_API_KEY, or "
                    "WANDB_MODE=offline"
                )

    @property
    def profiled(self) -> range:
        """Return the steps to trace."""
        first, last = map(int, self.profile_steps.split(":")) if self.profile_steps else (0, -1)
        return range(first, last + 1)

    def note_resume(self, step: int) -> None:
        """Print a note if a run that resumes at this step is past the steps to trace."""
        if self.profiled and self.profiled[-1] <= step:
            given = f"--profile_steps={self.profile_steps}"
            print(f"{given}: already done, nothing is traced", file=sys.stderr)


def wandb_run(project: str, workdir: Path, config: dict) -> Any:
    """Open the run of this working directory at Weights & Biases; it is resumed if it exists.

    Raises:
        InputError: Weights & Biases refuses, or cannot be reached.
    """
    import wandb

    kept = workdir / "wandb_run_id"
    if not kept.exists():
        write_text(kept, uuid.uuid4().hex)
    try:
        return wandb.init(
            project=project,
            name=workdir.name,
            id=kept.read_text(),
            resume="allow",
            dir=str(workdir),
            config=config,
        )
    except wandb.Error as error:  # a wrong key, no network
        raise InputError(f"--wandb_project={project}: {error}") from error


class Profiler:
    """Traces the steps of `Watch.profile_steps`."""

    def __init__(self, steps: range, directory: Path):
        self._steps, self._directory, self._running = steps, directory, False

    def before(self, step: int) -> None:
        """Start the trace if this step, not yet dispatched, is the first to trace."""
        if not self._running and step in self._steps:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, metrics: dict) -> None:
        """End the trace if this step, already dispatched, is the last to trace; wait for it."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write the trace, if one is running."""
        if self._running:
            self._running = False
            text = f"profile: {self._directory}"
            try:
                jax.profiler.stop_trace()
            except (RuntimeError, OSError) as error:  # a disk that is full or read-only
                reason = str(error).partition("\n")[0]
                text += f" cannot be written: {reason}; training continues"
            print(text, file=sys.stderr, flush=True)


def device_memory() -> dict[str, float]:
    """Return GB in use on the fullest of this host's devices, now and at the peak; nothing if the
    back end does not report them.
    """
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    names = {"memory/in_use": "bytes_in_use", "memory/peak": "peak_bytes_in_use"}
    return {
        name: max(found[key] for found in stats) / 1e9
        for name, key in names.items()
        if stats and all(key in found for found in stats)
    }
