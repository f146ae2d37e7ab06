"""Results on disk: files that appear whole, and journals of one JSON line each, so that a run that
was killed goes on where it stood.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from tpo_jax.errors import InputError


def output_file(given: str) -> Path:
    """The file that `--output` names, a link followed.

    Raises:
        InputError: it cannot be written as a file: a folder, a device, or in no folder.
    """
    try:
        path = Path(given).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a ring of links, a null character
        raise InputError(f"--output={given}: no name of a file: {error}") from error
    if not given or path.is_dir():
        raise InputError(f"--output={given}: a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"--output={given}: no such directory {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"--output={given}: not a regular file")
    return path


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write, `w` or `wb`, that takes the place of `path` when the block ends without an
    error.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises `InputError` where it holds none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def read_lines(path: Path, *, growing: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place, `file:line`.

    Args:
        path: the file.
        growing: leaves out a last line without its end, which is being written or was cut off.

    Raises:
        InputError: a line that is no JSON object; blank ones are skipped.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip() or (growing and not line.endswith(b"\n")):
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON: {error}") from error
            if not isinstance(value, dict):
                raise InputError(f"{where}: not a JSON object")
            yield where, value


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
