"""Paths that flags and configs name: on this machine or, where a command can use one, in a bucket.

A path with a scheme, such as `gs://bucket/videos`, is in a bucket and is read through
`etils.epath`. What maps, locks or appends to files needs a local one; it says so in one line
instead of making a folder called `gs:`.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from absl import flags

from tpo_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

Place: TypeAlias = Union[Path, "epath.Path"]


def in_bucket(path: str | Place) -> bool:
    """Return whether a path has a scheme, such as `gs://`."""
    return "://" in str(path)


def place(path: str | Place) -> Place:
    """Return a path on this machine or in a bucket, whichever the text names."""
    if not in_bucket(path):
        return Path(str(path))
    from etils import epath  # a tenth of a second, only where there is a bucket

    return epath.Path(path)


def local_path(name: str, path: str | Place) -> Path:
    """Return a path of this machine.

    Args:
        name: Flag or config field that holds the path, for the message.
        path: As given.

    Raises:
        InputError: The path is in a bucket.
    """
    if in_bucket(path):
        raise InputError(
            f"{name}={path}: must be on this machine; copy it here or mount the bucket, as "
            "launch/tpu_run.sh does"
        )
    return Path(path)


class _PathParser(flags.ArgumentParser):
    """Parses a flag's value to a path; refuses one in a bucket unless the command can use it."""

    def __init__(self, buckets: bool):
        self._buckets = buckets

    def parse(self, argument: str | Path) -> Any:
        if not str(argument):
            raise ValueError("must not be empty")
        if in_bucket(argument) and not self._buckets:
            raise ValueError(
                "must be on this machine; copy it here or mount the bucket, as launch/tpu_run.sh "
                "does"
            )
        return place(argument)

    def flag_type(self) -> str:
        return "path"


def define_path(
    name: str, default: str | None, help: str, *, required: bool = False
) -> flags.FlagHolder[Path]:
    """Define a flag that holds a path of this machine; a path in a bucket is refused."""
    return flags.DEFINE(_PathParser(buckets=False), name, default, help, required=required)


def define_place(
    name: str, default: str | None, help: str, *, required: bool = False
) -> flags.FlagHolder[Place]:
    """Define a flag that holds a path of this machine or in a bucket."""
    return flags.DEFINE(_PathParser(buckets=True), name, default, help, required=required)


def output_file(given: str | Path) -> Path:
    """Return the file that `--output` names, links followed.

    Raises:
        InputError: It cannot be written as a file: a folder, a device, or in no folder.
    """
    try:
        path = local_path("--output", given).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a ring of links, a null character
        raise InputError(f"--output={given}: not a file name: {error}") from error
    if not str(given) or path.is_dir():
        raise InputError(f"--output={given}: a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"--output={given}: no such directory {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"--output={given}: not a regular file")
    return path


@contextlib.contextmanager
def fetched(path: Place) -> Iterator[Path]:
    """Yield a local path to a file or a folder of files: itself, or a temporary copy of what is in
    a bucket.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        if path.is_dir():
            copy.mkdir()
            for file in path.iterdir():
                file.copy(copy / file.name)
        elif path.exists():
            path.copy(copy)
        yield copy


def upload(source: Path, target: Place) -> None:
    """Copy a local file to a place in a bucket; what is there is replaced."""
    from etils import epath

    epath.Path(source).copy(target, overwrite=True)


def version_of(file: Place) -> tuple[int, int]:
    """Return size in bytes and time of the last change, which differ between versions of a file."""
    if isinstance(file, Path):
        found = file.stat()
        return found.st_size, found.st_mtime_ns
    stat = file.stat()
    return stat.length, stat.mtime
