"""Metrics of a run: JSONL and TensorBoard files, and one line per log step for people."""

import json
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsWriter:
    """Writes scalars of a step to `metrics.jsonl` and to TensorBoard event files.

    Lines of steps after the one resumed from are dropped, and so is one that a killed run left half
    written: a continued run leaves the record of an uninterrupted one.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= first_step]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.replace(self._path)
        self._jsonl = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one record."""
        self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
        self._jsonl.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes everything."""
        self._jsonl.close()
        self._board.close()


class Progress:
    """The console's line: step, time left, and the few numbers one looks at."""

    SHOWN = ("rewards/margins", "rewards/accuracies", "pairs/s")

    def __init__(self, first_step: int, num_steps: int):
        self._first, self._num_steps, self._start = first_step, num_steps, time.monotonic()

    def show(self, step: int, scalars: dict[str, float]) -> None:
        """Prints one line on standard error."""
        per_step = (time.monotonic() - self._start) / max(step - self._first, 1)
        left = int(per_step * (self._num_steps - step))
        losses = ["losses/total", *sorted(n for n in scalars if n.startswith("losses/"))]
        shown = "  ".join(
            f"{n.removeprefix('losses/').removeprefix('rewards/')} {scalars[n]:.4g}"
            for n in dict.fromkeys([*losses, *self.SHOWN])
            if n in scalars
        )
        eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        line = f"step {step}/{self._num_steps}  eta {eta}  {shown}"
        print(line, file=sys.stderr, flush=True)
