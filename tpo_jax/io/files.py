"""Files: where output may go, files that appear whole, JSON and JSON Lines."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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
