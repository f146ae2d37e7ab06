"""Append-only journals of JSON lines, so that a killed run resumes where it stopped."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, Self

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines


class Journal:
    """An append-only file of results: a first line that says whose, then one object per line.

    A line without its end, which a kill leaves behind, is taken away. The file is locked as long as
    the journal is open: two runs never write into one.

    Args:
        path: the file; made where there is none.
        owner: what the results depend on, as JSON would give it back.
        advice: what to do about another owner.

    Raises:
        InputError: another owner, another run at work, or a line that is no object.
    """

    def __init__(self, path: Path, owner: dict[str, Any], advice: str):
        self.path = path
        self.lines: list[tuple[str, dict[str, Any]]] = []  # found when it was opened, with places
        self._file = path.open("a+b")
        try:
            self._start(owner, advice)
        except BaseException:
            self._file.close()
            raise

    def _start(self, owner: dict[str, Any], advice: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{self.path}: another run is writing here") from error
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        if whole:
            lines = list(read_lines(self.path, growing=True))
            if not lines:
                raise InputError(f"{self.path}: does not say whose results it holds; remove it")
            (_, found), *self.lines = lines
            check_owner(self.path, found, owner, advice)
        self._file.truncate(whole)
        if not whole:
            self.add([owner])

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Appends lines; they are on disk when this returns."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def check_owner(path: Path, found: dict[str, Any], owner: dict[str, Any], advice: str) -> None:
    """Raises `InputError`, which names what differs, where a file's first line is not `owner`."""
    names = [name for name in (owner | found) if found.get(name) != owner.get(name)]
    if names:
        was = ", ".join(f"{n} {found.get(n)!r}, not {owner.get(n)!r}" for n in names)
        raise InputError(f"{path}: results of another run ({was}); {advice}")
