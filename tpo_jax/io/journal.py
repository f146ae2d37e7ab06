"""Append-only files of JSON lines, which a killed run resumes from."""

import json
import os
from pathlib import Path
from typing import IO, Any, Self

from tpo_jax.errors import InputError
from tpo_jax.io.files import lock, read_lines


def cut_torn_line(file: IO[bytes]) -> None:
    """Cut off a last line without its newline, which a killed process left.

    Args:
        file: Open for reading and appending ("a+b").
    """
    end = file.seek(0, os.SEEK_END)
    start, whole = end, 0
    while start and not whole:
        size = min(start, 1 << 16)
        start = file.seek(start - size)
        if (found := file.read(size).rfind(b"\n")) >= 0:
            whole = start + found + 1
    if whole < end:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)


class Journal:
    """An append-only file of results: a first line that says whose they are, then one object a
    line.

    Opening cuts off a torn last line. The file is locked while the journal is open: two runs never
    write into one.

    Args:
        path: The file; created if absent.
        owner: What the results depend on, as JSON would return it.
        advice: What to do if the file has another owner, for the message.

    Attributes:
        lines: The results found on opening, each with its place `file:line`.

    Raises:
        InputError: The file has another owner, another run has it open, or a line is not an object.
    """

    def __init__(self, path: Path, owner: dict[str, Any], advice: str):
        self.path = path
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self._file = path.open("a+b")
        try:
            self._start(owner, advice)
        except BaseException:
            self._file.close()
            raise

    def _start(self, owner: dict[str, Any], advice: str) -> None:
        lock(self._file, f"{self.path}: another run is writing here")
        found = list(read_lines(self.path, growing=True))
        if found:
            (_, theirs), *self.lines = found
            check_owner(self.path, theirs, owner, advice)
        cut_torn_line(self._file)
        if not found:
            if self._file.tell():
                raise InputError(f"{self.path}: does not say whose results it holds; remove it")
            self.add([owner])

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Append lines; they are on disk when this returns."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def check_owner(path: Path, found: dict[str, Any], owner: dict[str, Any], advice: str) -> None:
    """Compare a journal's first line with the owner it should have.

    Raises:
        InputError: They differ; names the fields that do.
    """
    names = [name for name in (owner | found) if found.get(name) != owner.get(name)]
    if names:
        was = ", ".join(f"{n} {found.get(n)!r}, not {owner.get(n)!r}" for n in names)
        raise InputError(f"{path}: results of another run ({was}); {advice}")
