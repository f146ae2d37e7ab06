"""Metrics of a run: JSONL and TensorBoard files, and a table on the console for people."""

import sys
import time
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines, write_lines
from tpo_jax.training.files import Board, Lines

MOST_STEPS = 1 << 53
LARGEST = 1e39  # beyond what float32 holds; nothing that was measured


def read_records(path: Path) -> list[dict[str, float]]:
    """The records of `metrics.jsonl`, without one that is half written.

    Raises:
        InputError: a line that is no record.
    """
    records = []
    for where, record in read_lines(path, growing=True):
        step, numbers = record.get("step"), map(_is_number, record.values())
        if type(step) is not int or abs(step) > MOST_STEPS or not all(numbers):
            raise InputError(f"{where}: not what `train` writes; mend the line or remove it")
        records.append(record)
    return records


def _is_number(value: Any) -> bool:
    # Others may have written NaN.
    return type(value) in (int, float) and (abs(value) < LARGEST or value != value)


class MetricsWriter:
    """Writes scalars of a step to `metrics.jsonl`, to TensorBoard event files and, where a run of
    Weights & Biases is given, to that.

    Lines of steps after the one resumed from are dropped, and so is one that a killed run left half
    written: a continued run leaves the record of an uninterrupted one.

    Raises:
        InputError: there is a file that is not one of metrics.
    """

    def __init__(self, workdir: Path, first_step: int, wandb: Any = None):
        self._wandb = wandb
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [record for record in read_records(self._path) if record["step"] <= first_step]
            write_lines(self._path, kept)
        self._jsonl = Lines(self._path)
        self._board = Board(workdir / "tensorboard", first_step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one record."""
        self._jsonl.add({"step": step, **scalars})
        self._board.add(step, scalars)
        if self._wandb:
            self._wandb.log(scalars, step=step)

    def close(self) -> None:
        """Flushes everything."""
        self._jsonl.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


class Progress:
    """The console's table: a row per record with the few numbers one looks at."""

    COLUMNS = (
        ("margin", "rewards/margins", ".3f"),
        ("accuracy", "rewards/accuracies", ".2f"),
        ("chosen", "logps/chosen", ".2f"),
        ("rejected", "logps/rejected", ".2f"),
        ("grad norm", "grad_norm", ".3g"),
        ("pairs/s", "pairs/s", ".3g"),
        ("step", "time/step", ".0%"),
        ("input", "time/input_wait", ".0%"),
        ("goodput", "time/goodput", ".0%"),
    )
    HEAD_EVERY, WIDTH = 20, 9

    def __init__(self, first_step: int, num_steps: int):
        self._first, self._num_steps, self._start = first_step, num_steps, time.monotonic()
        self._rows = 0

    def show(self, step: int, scalars: dict[str, float]) -> None:
        """Prints one row on standard error, and the table's head every so often."""
        per_step = (time.monotonic() - self._start) / max(step - self._first, 1)
        left = int(per_step * (self._num_steps - step))
        losses = ["losses/total", *sorted(n for n in scalars if n.startswith("losses/"))]
        columns = [(n.removeprefix("losses/"), n, ".4g") for n in dict.fromkeys(losses)]
        columns = [column for column in (*columns, *self.COLUMNS) if column[1] in scalars]
        place = f"{step}/{self._num_steps}"
        across = max(len("steps"), 2 * len(str(self._num_steps)) + 1)
        lines = []
        if self._rows % self.HEAD_EVERY == 0:
            head = (f"{title:>{self.WIDTH}}" for title, _, _ in columns)
            lines.append("  ".join((f"{'steps':>{across}}", f"{'eta':>8}", *head)))
        self._rows += 1
        eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        values = (f"{scalars[name]:>{self.WIDTH}{form}}" for _, name, form in columns)
        lines.append("  ".join((f"{place:>{across}}", f"{eta:>8}", *values)))
        print("\n".join(lines), file=sys.stderr, flush=True)
