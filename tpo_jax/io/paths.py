"""Paths that flags and configs name: on this machine or, where a command can use one, in a bucket.

A path with a scheme, such as `gs://bucket/videos`, is in a bucket and is read through
`etils.epath`. Code that maps, locks or appends to files needs a local one; it says so in one line
instead of making a folder called `gs:`.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from absl import flags
from ml_collections import ConfigDict

from tpo_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

Place: TypeAlias = Union[Path, "epath.Path"]


_ADVICE = (
    "must be on this machine; copy it here or mount the bucket (docs/tpu.md), as launch/tpu_run.sh "
    "does"
)


def in_bucket(path: str | Place) -> bool:
    """Return whether a path has a scheme, such as `gs://`."""
    return "://" in str(path)


def place(path: str | Place) -> Place:
    """Return a path on this machine or in a bucket, whichever the text names."""
    if not in_bucket(path):
        return Path(str(path))
    from etils import epath  # a tenth of a second, only where there is a bucket

    return epath.Path(path)


def relative_to(folder: Place, path: str) -> str:
    """Return an absolute path as one relative to a folder that it lies in, also through links;
    any other path as it is.
    """
    absolute = Path(path)
    if in_bucket(path):
        return path.removeprefix(f"{folder}/")
    if not absolute.is_absolute() or in_bucket(folder):
        return path
    inside = Path(folder).absolute()
    # First as it is written, because a link in the folder may lead out of it.
    if absolute.is_relative_to(inside) and ".." not in absolute.parts:
        return str(absolute.relative_to(inside))
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        return str(absolute.resolve().relative_to(inside.resolve()))
    return path


def local_path(name: str, path: str | Place) -> Path:
    """Return a path of this machine.

    Args:
        name: Flag or config field that holds the path, for the message.

    Raises:
        InputError: The path is in a bucket.
    """
    if in_bucket(path):
        raise InputError(f"{name}={path}: {_ADVICE}")
    return Path(path)


flags.disclaim_key_flags()  # flags defined here belong to the module that calls `define_…`


class _PathParser(flags.ArgumentParser):
    """Parses a flag's value as a path; refuses one in a bucket unless the command can read it."""

    def __init__(self, buckets: bool):
        self._buckets = buckets

    def parse(self, argument: str | Path) -> Place:
        if not str(argument):
            raise ValueError("must name a file or folder")
        if in_bucket(argument) and not self._buckets:
            raise ValueError(_ADVICE)
        return place(argument)

    def flag_type(self) -> str:
        return "path"


class _PathsParser(flags.ListParser):
    """Parses the value of a flag as paths of this machine, separated by commas."""

    def parse(self, argument: str | list) -> list:
        found = super().parse(argument)
        for path in found:
            if in_bucket(path):
                raise ValueError(f"{path} {_ADVICE}")
        return found


def define_path(
    name: str,
    default: str | None,
    help: str,
    *,
    required: bool = False,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> flags.FlagHolder[Path]:
    """Define a flag that holds a path of this machine; a path in a bucket is refused."""
    parser = _PathParser(buckets=False)
    return flags.DEFINE(parser, name, default, help, flag_values, required=required)


def define_place(
    name: str, default: str | None, help: str, *, required: bool = False
) -> flags.FlagHolder[Place]:
    """Define a flag that holds a path of this machine or in a bucket."""
    return flags.DEFINE(_PathParser(buckets=True), name, default, help, required=required)


def define_paths(name: str, default: list[str], help: str) -> flags.FlagHolder[list[str]]:
    """Define a flag that holds paths of this machine, separated by commas."""
    return flags.DEFINE(
        _PathsParser(), name, default, help, serializer=flags.CsvListSerializer(",")
    )


def check_config(config: ConfigDict, prefix: str = "--config.") -> None:
    """Check that no field of a config names a place in a bucket.

    Raises:
        InputError: A field does; names it.
    """
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            check_config(value, f"{prefix}{name}.")
        for path in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(path, str) and not path.startswith(("http://", "https://")):
                local_path(prefix + name, path)


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


def is_folder(path: Place, name: str = "") -> bool:
    """Return whether there is a folder at a place.

    Args:
        name: Flag that holds it, as `--videos=`, for the message.

    Raises:
        InputError: The package that reads this kind of bucket is not installed.
    """
    try:
        return path.is_dir()
    except ImportError as error:
        raise InputError(f"{name}{path}: {error}") from error


def check_folder(name: str, path: Place) -> None:
    """Raise `InputError` unless there is a folder at a place; `name` is the flag that holds it."""
    if not is_folder(path, f"{name}="):
        what = "a file, not a folder" if path.exists() else "no such folder"
        raise InputError(f"{name}={path}: {what}")


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
        if is_folder(path):
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
