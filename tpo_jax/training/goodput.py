"""Goodput: the share of a run's life, restarts included, that was spent on steps that count.

`goodput.jsonl` in the working directory is append-only: a line for each start and a line for each
stretch of steps, so that it also records work that a kill threw away.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines
from tpo_jax.training.clock import SPANS
from tpo_jax.training.files import Lines

JOURNAL = "goodput.jsonl"
LONGEST = 1e12  # seconds, more than any clock shows


class Account:
    """Sums over the lines of a journal, in seconds.

    Attributes:
        seconds: `step` (steps that count), `lost` (steps that a later start repeated), each of
            `clock.SPANS`, `other`, `startup` (from a start to its first step) and `down` (between
            the last line of one start and the next start: not running, or at work that no line
            records). They add up to `wall`.
        wall: From the first start to the last line.
        starts: Number of starts.
    """

    def __init__(self, lines: Iterable[dict] = ()):
        names = ("step", "lost", *SPANS, "other", "startup", "down")
        self.seconds = dict.fromkeys(names, 0.0)
        self.starts = 0
        self._first = self._last = 0.0
        self._kept: list[tuple[int, int, float]] = []  # after this step, up to that one, seconds
        for line in lines:
            self.add(line)

    @property
    def wall(self) -> float:
        return self._last - self._first

    @property
    def goodput(self) -> float:
        """Return seconds of steps that count per second of wall time; 0 before the first."""
        return self.seconds["step"] / self.wall if self.wall else 0.0

    def add(self, line: dict) -> None:
        """Add the next line."""
        # Clocks of machines differ: time never runs backwards here.
        now = max(line["time"], self._last) if self.starts else line["time"]
        if "steps" not in line:
            if self.starts:
                self.seconds["down"] += now - self._last
            else:
                self._first = now
            self.starts += 1
        else:
            (after, until), seconds = line["steps"], line["seconds"]
            self._forget(after)
            if until > after:
                self._kept.append((after, until, seconds["step"]))
            for name, value in seconds.items():
                self.seconds[name] += value
            now = max(now, self._last + sum(seconds.values()))
            self.seconds["startup"] += now - self._last - sum(seconds.values())
        self._last = now

    def _forget(self, step: int) -> None:
        """Count steps after this one as lost: they are repeated."""
        while self._kept and self._kept[-1][1] > step:
            after, until, seconds = self._kept.pop()
            kept = seconds * max(step - after, 0) / (until - after)
            if kept:
                self._kept.append((after, step, kept))
            self.seconds["step"] -= seconds - kept
            self.seconds["lost"] += seconds - kept


def read(workdir: Path) -> list[dict]:
    """Return the complete lines of a working directory's journal; none if there is no journal.

    Raises:
        InputError: A line that `train` did not write.
    """
    path = workdir / JOURNAL
    lines = []
    for where, line in read_lines(path, growing=True) if path.exists() else ():
        if not _is_line(line):
            raise InputError(f"{where}: not what `train` writes; repair or remove the line")
        lines.append(line)
    return lines


def _is_line(line: dict) -> bool:
    numbers: list[Any] = [line.get("time")]
    if "steps" in line:
        steps, seconds = line["steps"], line.get("seconds")
        if not (isinstance(steps, list) and len(steps) == 2 and isinstance(seconds, dict)):
            return False
        if seconds.keys() - {"step", *SPANS, "other"} or "step" not in seconds:
            return False
        numbers += [*steps, *seconds.values()]
    return all(type(x) in (int, float) and abs(x) < LONGEST for x in numbers)


class GoodputJournal:
    """The journal of a running process, and the account so far."""

    def __init__(self, workdir: Path, started: float):
        """Record a start.

        Args:
            workdir: Directory of the journal.
            started: When this process began, seconds since the epoch.
        """
        self.account = Account(read(workdir))
        self._file = Lines(workdir / JOURNAL)
        self._add({"time": started})

    def add(self, after: int, until: int, seconds: dict[str, float]) -> None:
        """Record a stretch that has just ended: the steps `after + 1 … until`, possibly none, and
        the clock's `split` of its time.
        """
        self._add({"time": time.time(), "steps": [after, until], "seconds": seconds})

    def _add(self, line: dict) -> None:
        self._file.add(line)
        self.account.add(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
