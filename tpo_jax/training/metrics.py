"""Metrics of a run: `metrics.jsonl`, TensorBoard files, Weights & Biases, and the console."""

import sys
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines, write_lines
from tpo_jax.training.files import Board, Lines

MOST_STEPS = 1 << 53
LARGEST = 1e39  # beyond float32: not a measured value


def read_records(path: Path) -> list[dict[str, float]]:
    """Return the records of `metrics.jsonl`; an incomplete last line is left out.

    Raises:
        InputError: A line that is not a record.
    """
    records = []
    for where, record in read_lines(path, growing=True):
        step, numbers = record.get("step"), map(_is_number, record.values())
        if type(step) is not int or abs(step) > MOST_STEPS or not all(numbers):
            raise InputError(f"{where}: not what `train` writes; repair or remove the line")
        records.append(record)
    return records


def _is_number(value: Any) -> bool:
    # NaN may come from other programs.
    return type(value) in (int, float) and (abs(value) < LARGEST or value != value)


class MetricsWriter:
    """Writes the scalars of a step to `metrics.jsonl`, to TensorBoard event files and, if one is
    given, to a run of Weights & Biases.

    Lines of steps after `first_step`, and an incomplete last line, are dropped: a resumed run
    leaves the records of an uninterrupted one.

    Raises:
        InputError: The directory has a `metrics.jsonl` with other content.
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
        """Append one record."""
        self._jsonl.add({"step": step, **scalars})
        self._board.add(step, scalars)
        if self._wandb:
            self._wandb.log(scalars, step=step)

    def close(self) -> None:
        """Flush and close everything."""
        self._jsonl.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


class Progress:
    """The console's table: a row for each record with the numbers to watch."""

    COLUMNS = (
        ("margin", "rewards/margins", ".3f"),
        ("accuracy", "rewards/accuracies", ".2f"),
        ("v loss", "video/losses/dpo", ".4g"),
        ("v margin", "video/rewards/margins", ".3f"),
        ("v accur.", "video/rewards/accuracies", ".2f"),
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
        self._first, self._num_steps = first_step, num_steps
        self._rows, self._spent = 0, 0.0

    def show(self, step: int, scalars: dict[str, float], seconds: dict[str, float]) -> None:
        """Print one row on standard error, and the table's head every so often.

        Args:
            seconds: Parts of the time since the last row, as `StepClock.split` gives them. The time
                left is estimated without `compile`, which only the first step needs.
        """
        self._spent += sum(seconds.values()) - seconds["compile"]
        left = int(self._spent / max(step - self._first, 1) * (self._num_steps - step))
        columns = [column for column in _losses(scalars) + self.COLUMNS if column[1] in scalars]
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

    def show_eval(self, step: int, scalars: dict[str, float]) -> None:
        """Print one line with the metrics over held-out pairs, given without `eval/`."""
        columns = _losses(scalars) + self.COLUMNS[:7]
        values = (f"{title} {scalars[n]:{form}}" for title, n, form in columns if n in scalars)
        pairs = f"{scalars['pairs']:.0f} held-out pairs"
        print(f"step {step}, {pairs}: {', '.join(values)}", file=sys.stderr, flush=True)


def _losses(scalars: dict[str, float]) -> tuple[tuple[str, str, str], ...]:
    """Return title, name and format of the losses, the total first."""
    names = ["losses/total", *sorted(name for name in scalars if name.startswith("losses/"))]
    return tuple((name.removeprefix("losses/"), name, ".4g") for name in dict.fromkeys(names))
