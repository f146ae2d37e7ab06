"""Folders of videos: files, or a store that `prepare` made of them (`data/shards.py`).

A path may lead into a store: `store/cooking.mp4` is the video that was made of `cooking.mp4`, with
the same frames, bit by bit. Commands that take a folder of videos take a store in its place.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tpo_jax.data import store
from tpo_jax.data.shards import MANIFEST, open_shards
from tpo_jax.data.store import VideoStore
from tpo_jax.errors import InputError
from tpo_jax.io.files import hash_of
from tpo_jax.io.paths import Place, place, version_of
from tpo_jax.video.decode import Source, VideoError
from tpo_jax.video.packets import StoredVideo
from tpo_jax.video.sampling import IMAGE_SUFFIXES


def is_store(folder: Place) -> bool:
    """Return whether a folder is a directory of shards on this machine.

    Raises:
        InputError: It was one, and has lost its manifest.
    """
    if not isinstance(folder, Path) or not os.path.isdir(os.path.join(folder, store.FOLDER)):
        return False
    if os.path.isfile(os.path.join(folder, MANIFEST)):
        return True
    if os.path.isfile(os.path.join(folder, store.FOLDER, store.INDEX)):
        raise InputError(f"{folder}: stored videos without their {MANIFEST}; copy it there again")
    return False


def video_at(path: str | os.PathLike) -> Source:
    """Return the video at a path: the path itself, or the stored video if it leads into a store.

    Raises:
        VideoError: The store has no such video.
        InputError: The store cannot be read, or holds frames only.
    """
    path = Path(path)
    folder = None if os.path.exists(path) else next(filter(is_store, path.parents), None)
    if folder is None:
        return path
    videos, name = _opened(folder), path.relative_to(folder).as_posix()
    if name not in videos:
        raise VideoError(path, f"no such video in the store {folder}")
    return videos.named(name)


def find_video(folder: Path, names: Sequence[str]) -> Path:
    """Return the path of the first of some names that is a file or a stored video of a folder.

    Raises:
        InputError: None of them is, or the store cannot be read.
    """
    held = _opened(folder) if is_store(folder) else ()
    for name in names:
        if (folder / name).is_file() or name in held:
            return folder / name
    place = f" in the store {folder}" if held else ""
    raise InputError(f"{folder / names[0]}: no such video{place}")


def check_relative(folder: Place, field: str, path: str) -> None:
    """Raise `ValueError`, with what to write instead, for an absolute path where the folder is a
    store, which does not know where its files lay.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] != "/" or not is_store(folder):
        return
    held, names = _opened(Path(folder)), ("/".join(parts[i:]) for i in range(1, len(parts)))
    known = next((name for name in names if name in held), None)
    advice = f"; it holds a {known!r}" if known else ""
    raise ValueError(
        f"{field} {path!r}: {folder} is a store, which does not know where its files lay; write "
        f"the path inside the folder it was made of{advice}"
    )


def names_in(folder: str | Place) -> list[str]:
    """Return the paths of all videos of a folder or a store, relative to it and sorted.

    In a folder these are files, folders of images and dangling links, without hidden ones.

    Raises:
        InputError: The store cannot be read, or holds frames only.
    """
    folder = place(folder)
    if is_store(folder):
        return sorted(_opened(Path(folder)).names(), key=PurePosixPath)
    files = {PurePosixPath(p.relative_to(folder).as_posix()): p for p in _below(folder)}
    images = {name.parent for name in files if name.suffix.lower() in IMAGE_SUFFIXES}
    images.discard(PurePosixPath("."))
    # A link that leads nowhere is named, too, so that it is reported.
    found = images | {
        name
        for name, file in files.items()
        if name.parent not in images and (file.is_file() or not file.exists())
    }
    hidden = {name for name in found if any(part.startswith(".") for part in name.parts)}
    return [str(name) for name in sorted(found - hidden)]


def _below(folder: Place) -> Iterator[Place]:
    """Yield all files and folders below a folder, following links to folders elsewhere."""
    if not isinstance(folder, Path):
        yield from folder.rglob("*")
        return
    top, seen = folder.resolve(), set[Path]()
    for at, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(at, name) for name in (*folders, *files))
        # Links into or above the folder, or to a place seen before, show what is there already.
        links = {Path(at, name): name for name in folders if Path(at, name).is_symlink()}
        for link, name in sorted(links.items()):
            target = link.resolve()
            if target.is_relative_to(top) or top.is_relative_to(target) or target in seen:
                folders.remove(name)
            seen.add(target)


def identity_of(video: Place) -> tuple[str, int]:
    """Return a text that changes whenever the video does, and the video's size in bytes, without
    reading it; the text is empty if there is no video.
    """
    try:
        source = video_at(video) if isinstance(video, Path) else video
        if isinstance(source, StoredVideo):
            return source.header.digest, int(source.header.sizes.sum())
        files = sorted(video.iterdir()) if video.is_dir() else [video]
        versions = [version_of(file) for file in files]
    except (OSError, ValueError):  # missing, or a name that no file can have
        return "", 0
    named = [(file.name, *version) for file, version in zip(files, versions, strict=True)]
    return hash_of(named), sum(size for size, _ in versions)


def _opened(folder: Path) -> VideoStore:
    """Return the videos of a store, which stays open. Raises `InputError`."""
    return _opened_once(folder, os.stat(folder / MANIFEST).st_mtime_ns)


@functools.lru_cache(2)
def _opened_once(folder: Path, changed: int) -> VideoStore:
    shards = open_shards(folder)
    if (frames := shards.manifest["frames"]) != "clip":
        raise InputError(f"{folder}: holds {frames} frames, not videos")
    return shards.videos
