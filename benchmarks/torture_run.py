"""A training run as processes that can be killed, and its results; for `torture.py`."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tpo_jax.data.batches import BatchIterator
from tpo_jax.training import loop

ROOT = Path(__file__).resolve().parents[1]
BATCH = 8
CLOCK = ("pairs/s", "time/", "memory/")  # metrics that depend on it
PAIRS = "TORTURE_PAIRS"  # where a child notes the pairs of its batches


class Noted(BatchIterator):
    """Notes batches that are trained on, not those of the reference pass or of evaluations."""

    def __next__(self):
        k, batch = self.get_state()["next_batch"], super().__next__()
        line = {"host": jax.process_index(), "batch": k, "pairs": batch.pair_index.tolist()}
        with open(os.environ[PAIRS], "a") as file:
            file.write(json.dumps(line) + "\n")
        return batch


def noting(run: Callable) -> Callable:
    """Return `loop.run` so that it records the pairs of every batch that is trained on."""

    def noted(length, step, state, batches, *rest):
        batches.__class__ = Noted
        return run(length, step, state, batches, *rest)

    return noted


def child() -> None:
    """Run `train` and record the pairs of every batch that is trained on."""
    loop.run = noting(loop.run)
    sys.argv[0] = "train"
    runpy.run_module("tpo_jax.train", run_name="__main__")


@dataclasses.dataclass
class Run:
    """A working directory and how to start training in it."""

    workdir: Path
    arguments: list[str]
    cache: Path  # of compiled programs
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def start(self, *more: str, devices: int = 2) -> subprocess.Popen:
        """Start a process that trains; its standard error goes to a file beside the directory."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
            PAIRS: str(self.workdir) + ".pairs",
        }
        command = [sys.executable, __file__, *self.arguments, f"--workdir={self.workdir}"]
        with open(f"{self.workdir}.log", "ab") as log:
            return subprocess.Popen(
                [*command, *more],
                env=environment | self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, *more: str, devices: int = 2) -> None:
        """Train to the end."""
        if code := self.start(*more, devices=devices).wait():
            raise SystemExit(f"exit code {code}:\n{self.log[-2000:]}")

    @property
    def log(self) -> str:
        """Return the standard error of the processes."""
        return Path(f"{self.workdir}.log").read_text()

    def records(self) -> list[dict]:
        """Return whole lines of the metrics, without what depends on the clock."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in found]

    def unfinished(self) -> bool:
        """Return whether a checkpoint is being written, or was when the process ended."""
        return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def state(self, step: int) -> dict:
        """Return the train state of a checkpoint, NumPy."""
        path = self.workdir / "checkpoints" / str(step)
        return jax.tree.map(np.asarray, ocp.load_checkpointables(path, {"state": None})["state"])

    def pairs(self) -> dict[int, set[str]]:
        """Return by batch the pairs that all hosts together ever took for it."""
        parts: dict[int, dict[int, list]] = {}
        taken: dict[int, set[str]] = {}
        for line in Path(f"{self.workdir}.pairs").read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                note = json.loads(line)
                hosts = parts.setdefault(note["batch"], {})
                hosts[note["host"]] = note["pairs"]
                rows = [row for _, part in sorted(hosts.items()) for row in part]
                if len(rows) == BATCH:  # of all hosts
                    taken.setdefault(note["batch"], set()).add(json.dumps(rows))
                    hosts.clear()
        return taken


@dataclasses.dataclass
class Kill:
    """One kill and what it left."""

    when: str
    signal: str
    workers: int
    step: int  # of the last metrics
    code: int
    seconds: float  # until the process was gone
    unfinished: bool


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float) -> None:
    """Wait until it holds, the process has ended, or time is up."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def kill_once(
    run: Run, when: str, kind: str, *, workers: int = 0, more: int = 0, delay: float = 0.0
) -> Kill:
    """Start a run and end it by a signal.

    Args:
        run: what is killed.
        when: "in a save", "after steps" or "at the start".
        kind: of the signal, "TERM" or "KILL".
        workers: decoding processes.
        more: steps beyond the first of this start, for "after steps".
        delay: seconds between the moment and the signal.
    """
    first, began = len(run.records()), time.time()
    process = run.start(f"--config.data.workers={workers}")
    records = run.workdir / "metrics.jsonl"

    def trains() -> bool:  # what the start before left must not count
        fresh = records.exists() and records.stat().st_mtime > began
        return fresh and len(run.records()) not in (first, 0)

    if when != "at the start":
        wait_for(trains, process, 600)
    if when == "in a save":
        wait_for(run.unfinished, process, 600)
    elif when == "after steps":
        goal = len(run.records()) + more
        wait_for(lambda: len(run.records()) >= goal, process, 600)
    wait_for(lambda: False, process, delay)
    if process.poll() is not None:
        raise SystemExit(f"ended by itself with {process.returncode}:\n{run.log[-2000:]}")
    asked = time.monotonic()
    number = getattr(signal, f"SIG{kind}")
    process.send_signal(number)
    code = process.wait(600)
    seconds = time.monotonic() - asked
    expected = {"KILL": (-9,), "TERM": (0, -15)}[kind]
    if code not in expected:
        raise SystemExit(f"{kind} {when}: exit code {code}:\n{run.log[-2000:]}")
    left = when != "at the start" and run.unfinished()
    step = (run.records() or [{"step": 0}])[-1]["step"]
    return Kill(when, kind, workers, step, code, seconds, left)


if __name__ == "__main__":
    child()
