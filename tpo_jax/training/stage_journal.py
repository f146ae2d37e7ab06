"""The journal of a run of several rounds: what each stage took and made; a killed run resumes from
it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from tpo_jax.io.journal import Journal
from tpo_jax.parallel import distributed


class StageJournal:
    """The stages of all rounds: what is done, and the time that it took.

    A stage has a line whenever it starts, a line with its seconds when it ends or fails, and one
    with its result when it is done. All processes must call the methods together.

    Args:
        journal: The open file; None in processes other than the first.
    """

    def __init__(self, journal: Journal | None):
        self._journal = journal
        self._lines = [line for _, line in journal.lines] if journal else []

    def run(
        self, number: int, stage: str, folder: Path, work: Callable[[], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """Do the work of a stage unless it is done.

        Args:
            number: Of the round.
            folder: What the stage writes; a killed start is counted until the last write to it.
            work: Returns what JSON can hold, or None if it was asked to stop.

        Returns:
            `seconds`, `device seconds` (times the devices that it had) and `starts`, over all
            starts, with what `work` returned; None if it was asked to stop.
        """
        name = {"round": number, "stage": stage}

        def lines(field: str) -> list[dict[str, Any]]:
            return [x for x in self._lines if name.items() <= x.items() and field in x]

        if not distributed.lead(lambda: bool(lines("result"))):
            if len(lines("begun")) > len(lines("seconds")):
                killed = lines("begun")[-1]
                seconds = max(0.0, _last_change(folder) - killed["begun"])
                self._add(name | {"seconds": seconds, "devices": killed["devices"]})
            begun, devices = time.time(), jax.device_count()
            self._add(name | {"begun": begun, "devices": devices})
            try:
                result = work()
            finally:
                self._add(name | {"seconds": time.time() - begun, "devices": devices})
            if result is None:
                return None
            self._add(name | {"result": result})

        def report() -> dict[str, Any]:
            spans = [(x["seconds"], x["devices"]) for x in lines("seconds")]
            return {
                "seconds": round(sum(seconds for seconds, _ in spans), 1),
                "device seconds": round(sum(seconds * devices for seconds, devices in spans), 1),
                "starts": len(lines("begun")),
                **lines("result")[-1]["result"],
            }

        found: dict[str, Any] = distributed.lead(report)
        return found

    def _add(self, line: dict[str, Any]) -> None:
        if self._journal:
            self._journal.add([line])
            self._lines.append(line)


def _last_change(folder: Path) -> float:
    """Return when the last file below a folder was written, seconds since the epoch, or 0."""
    return max((p.stat().st_mtime for p in folder.rglob("*") if p.is_file()), default=0.0)


@contextlib.contextmanager
def open_journal(path: Path, owner: dict[str, Any]) -> Iterator[StageJournal]:
    """Open a journal of stages in the first process, for all of them.

    Args:
        owner: The settings that it must have been begun with, as JSON would return them.

    Raises:
        InputError: It was begun with others, or another run has it open.
    """
    with contextlib.ExitStack() as stack:
        journal: list[Journal] = []

        def start() -> None:
            file = Journal(path, owner, "choose another --workdir")
            journal.append(stack.enter_context(file))

        distributed.lead(start)
        yield StageJournal(journal[0] if journal else None)
