"""Files that a run appends to, on disks that may be full for some time."""

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tpo_jax.io.journal import cut_torn_line

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter


class Lines:
    """Appends JSON lines to a file; lines that cannot be written stay in memory until the next."""

    def __init__(self, path: Path):
        """Open the file and cut off an incomplete last line, which a killed run left."""
        self._path, self._waiting, self._told = path, b"", False
        self._file = path.open("a+b", buffering=0)
        cut_torn_line(self._file)

    def add(self, line: dict) -> None:
        """Append a line."""
        self._waiting += (json.dumps(line) + "\n").encode()
        try:
            while self._waiting:
                written = self._file.write(self._waiting)
                self._waiting = self._waiting[written:]
            self._told = False
        except OSError as error:
            self._told = _tell(self._path, error, self._told)

    def close(self) -> None:
        """Close the file; lines still in memory are lost and reported."""
        if count := self._waiting.count(b"\n"):
            print(f"{self._path}: the last {count} lines are lost", file=sys.stderr)
        self._file.close()


class Board:
    """Writes scalars for TensorBoard; those that cannot be written are left out.

    tensorboardX's `SummaryWriter` writes from a thread that ends at the first error, such as a full
    disk, and then blocks the program: its queue of ten events is never emptied. `Board` writes
    with the same package's `EventsWriter`, in the caller's thread.
    """

    def __init__(self, directory: Path, first_step: int):
        """Make the directory; TensorBoard will drop scalars of steps after `first_step` in it."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._told = directory, False
        self._writer: EventsWriter | None = None
        self._forget_from = first_step + 1

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a step."""
        file, events, summaries = _tensorboardx()
        values = [summaries.Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        summary = summaries.Summary(value=values)
        try:
            if self._writer is None:
                self._writer = file.EventsWriter(str(self._directory / "events"), f".{step}")
                start = events.SessionLog(status=events.SessionLog.START)
                self._write(step=self._forget_from, session_log=start)
            self._write(step=step, summary=summary)
            self._writer.flush()
            self._told = False
        except OSError as error:
            # A partial event makes the rest of a file unreadable: the next event starts a new one.
            self._writer, self._forget_from = None, step + 1
            self._told = _tell(self._directory, error, self._told)

    def _write(self, **content: object) -> None:
        assert self._writer is not None
        _, events, _ = _tensorboardx()
        self._writer.write_event(events.Event(wall_time=time.time(), **content))

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()


def _tensorboardx() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Return tensorboardX's modules: the writer, and the messages of events and of summaries.

    Where PyTorch is installed, tensorboardX imports it, which takes seconds and 200 MB. Only
    tensors need it, so PyTorch is hidden during the import.
    """
    hidden = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_file_writer, event_pb2, summary_pb2


def _tell(path: Path, error: OSError, told: bool) -> bool:
    if not told:
        print(f"{path}: cannot be written: {error.strerror}; training continues", file=sys.stderr)
    return True
