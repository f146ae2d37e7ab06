"""Files and directories that appear whole or not at all; JSON and JSON Lines.

Everything is written under a temporary name beside its place and renamed; files are flushed to disk
first. Names of temporary files are unique; if several processes write one file, the last one wins.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tpo_jax.errors import InputError
from tpo_jax.io.paths import Place, upload


@contextlib.contextmanager
def replacing_file(path: Place, suffix: str = "") -> Iterator[Path]:
    """Yield a path to write to; the file there replaces `path` when the block ends.

    If the block raises, `path` stays as it was. A file in a bucket is written on this machine and
    uploaded.

    Args:
        path: The file that appears or is replaced. Its directory exists.
        suffix: End of the temporary name, for libraries that choose a format by it.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            upload(temporary, path)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial{suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Place, mode: str = "w") -> Iterator[IO]:
    """Yield a file, opened for writing as `mode` ("w" or "wb") says, that becomes `path` when the
    block ends without an error.
    """
    with (
        replacing_file(path) as temporary,
        temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


def lock(file: IO | int, refusal: str, wait: bool = False) -> None:
    """Lock an open file, or the descriptor of a directory, until it is closed.

    While another process has locked it, wait or raise. A file system without locks locks nothing.

    Raises:
        InputError: Another process has locked it, unless `wait`; the message is `refusal`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise InputError(refusal) from error
    except OSError:  # a file system without locks
        pass


@contextlib.contextmanager
def replacing_directory(path: Path, leads: bool = True) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `path` when the block ends.

    If the block raises, the directory is removed and `path` stays as it was. A directory that a
    killed process left is emptied first.

    Args:
        path: The directory that appears or is replaced.
        leads: False in all but one of the processes that fill the directory together. The others
            only learn its name; they synchronize with the leading process inside the block.

    Raises:
        InputError: Another run is writing this directory.
    """
    temporary = path.with_name(f".{path.name}.partial")
    if not leads:
        yield temporary
        return
    temporary.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        lock(descriptor, f"{path}: another run is writing it")
        try:
            _empty(temporary)
            yield temporary
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def read_json(path: Place) -> Any:
    """Return the value in a JSON file.

    Raises:
        InputError: The file does not exist or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def read_json_object(path: Place) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: The file does not exist or does not hold a JSON object.
    """
    if not isinstance(value := read_json(path), dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def write_text(path: Place, text: str) -> None:
    """Write a text file in UTF-8; line ends stay what they are."""
    with replacing(path, "wb") as file:
        file.write(text.encode())


def write_json(path: Place, value: Any) -> None:
    """Write a JSON file, indented; keys keep their order."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def as_json(values: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON gives them back, with lists for tuples, to
    compare them with a file.
    """
    return json.loads(json.dumps(dataclasses.asdict(values)))


def hash_of(value: Any) -> str:
    """Return a hash of what JSON can hold, dataclasses included."""
    text = json.dumps(value, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()


def read_lines(path: Path, *, growing: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON Lines file, each with its place `file:line`. Blank lines are
    skipped.

    Args:
        growing: Whether another process may be appending: a last line without its newline is
            skipped.

    Raises:
        InputError: A line is not a JSON object.
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


def write_lines(path: Place, lines: Iterable[Any]) -> None:
    """Write a JSON Lines file, one value a line."""
    with replacing(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
