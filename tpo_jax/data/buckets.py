"""Folders that may lie in a bucket: `gs://…`, read and written through etils and fsspec."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from etils import epath

Place: TypeAlias = Path | epath.Path


def place(path: str | Path) -> Place:
    """A path of this machine, or one in a bucket."""
    return epath.Path(path) if "://" in str(path) else Path(path)


@contextlib.contextmanager
def fetched(path: Place) -> Iterator[Path]:
    """A file, or a folder of files, on this machine: itself or, while entered, a copy of it."""
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


@contextlib.contextmanager
def written(path: Place) -> Iterator[Path]:
    """Where to write a file of this name: itself or, for a bucket, a file that is copied there in
    the end.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        yield copy
        epath.Path(copy).copy(path, overwrite=True)


def stamp(file: Place) -> tuple[int, int]:
    """Size and time of the last change, which tell versions of a file apart."""
    if isinstance(file, Path):
        found = file.stat()
        return found.st_size, found.st_mtime_ns
    stat = file.stat()
    return stat.length, stat.mtime
