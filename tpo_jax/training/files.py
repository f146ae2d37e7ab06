"""Files that a run appends to, on disks that may be full for some time."""

import json
import sys
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from tpo_jax.io.journal import cut_torn_line


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
    disk, and then blocks the program: its queue of ten events is never emptied. This writes
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
        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        try:
            if self._writer is None:
                self._writer = EventsWriter(str(self._directory / "events"), f".{step}")
                start = SessionLog(status=SessionLog.START)
                event = Event(step=self._forget_from, wall_time=time.time(), session_log=start)
                self._writer.write_event(event)
            event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
            self._writer.write_event(event)
            self._writer.flush()
            self._told = False
        except OSError as error:
            # A partial event makes the rest of a file unreadable: the next event starts a new one.
            self._writer, self._forget_from = None, step + 1
            self._told = _tell(self._directory, error, self._told)

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()


def _tell(path: Path, error: OSError, told: bool) -> bool:
    if not told:
        print(f"{path}: cannot be written: {error.strerror}; training continues", file=sys.stderr)
    return True
