"""Checks videos and writes them as shards of the store: what a worker of `prepare` does.

A video is read once. Its sampled frames are decoded from the file first; when the shard is written
they are decoded again, from the shard, and must be the same.
"""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tpo_jax.data.array_records import write_records
from tpo_jax.data.checks import Settings
from tpo_jax.data.folders import identity_of, video_at
from tpo_jax.data.store import Entry, VideoRecord, VideoStore
from tpo_jax.errors import InputError
from tpo_jax.io.files import hash_of, replacing_file
from tpo_jax.io.paths import Place, fetched
from tpo_jax.video import proxy, sampling
from tpo_jax.video.decode import Source, Video, VideoError, opened
from tpo_jax.video.dissection import LARGE, dissect
from tpo_jax.video.packets import Header
from tpo_jax.video.sampling import Sample

Block = Sequence[tuple[str, str]]  # paths in the folder of videos, with their identities


class _Unusable(Exception):
    """A video turned out to be unusable after some of its records were written."""

    def __init__(self, video: str, reason: str):
        super().__init__(reason)
        self.video, self.reason = video, reason


def key_of(block: Block, settings: Settings) -> str:
    """Return a hash of everything that a shard is made of."""
    return hash_of([list(block), dataclasses.asdict(settings)])


def write_videos(folder: Place, root: Place, block: Block, settings: Settings) -> dict[str, Any]:
    """Write the usable videos of a block as one shard, `folder/<key>`.

    Returns:
        What JSON can hold: `key`; `shard`, its entry of the manifest, None without a usable video;
        and `videos`, for each either `error` or `timestamps`, `duration`, `fps`, `digest`, `first`
        and `records`.

    Raises:
        InputError: A video changed while it was read, or the disk is full.
    """
    key, errors = key_of(block, settings), dict[str, str]()
    target = folder / key
    while True:
        usable = [video for video in block if video[0] not in errors]
        shard = _Shard(root, usable, settings)
        try:
            with replacing_file(target) as temporary:
                entry = write_records(temporary, map(VideoRecord.to_bytes, shard.records()), key)
                shard.read_back(temporary, entry)
            break
        except _Unusable as error:  # rare, so writing the others again does not matter
            errors[error.video] = error.reason
    if not entry["records"]:
        target.unlink()
    bad = {name: {"error": f"{name}: {reason}"} for name, reason in errors.items()}
    found = shard.found | bad
    return {
        "key": key,
        "shard": entry if entry["records"] else None,
        "videos": {name: found[name] for name, _ in block},
    }


class _Shard:
    """A shard while it is written; `found` is what is known of its videos."""

    def __init__(self, root: Place, block: Block, settings: Settings):
        self._root, self._block, self._settings = root, block, settings
        self._count = 0  # records so far
        self._frames: dict[str, str] = {}  # hash of the frames sampled from each file
        self.found: dict[str, dict[str, Any]] = {}

    def records(self) -> Iterator[VideoRecord]:
        """Yield the records of the usable videos."""
        for name, identity in self._block:
            path = self._root / name
            if identity_of(path)[0] != identity:
                raise InputError(f"{path}: changed while it was read; run again")
            first = self._count
            try:
                with fetched(path) as here:
                    yield from self._video(name, video_at(here))
            except (VideoError, OSError) as error:
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
                if self._count > first:
                    raise _Unusable(name, str(reason)) from error
                self.found[name] = {"error": f"{name}: {reason}"}

    def _video(self, name: str, source: Source) -> Iterator[VideoRecord]:
        settings, first = self._settings, self._count
        how = settings.sampling, settings.num_frames
        if settings.frames != "clip":
            clip = sampling.sample_frames(source, *how)
            images = [_encoded(frame, settings.frames) for frame in clip.frames]
            digest = hashlib.sha256(b"".join(hashlib.sha256(i).digest() for i in images))
            for items in _divided(images):
                yield self._record(name, first, "", items)
            self._note(name, first, clip, digest.hexdigest())
            return
        if isinstance(source, Path) and source.is_dir():
            raise VideoError(name, "a folder of frames needs --frames=png or --frames=jpeg")
        with self._opened(source) as video:
            clip = sampling.sample_video(video, *how)
            self._frames[name] = _hash(clip)
            for part in dissect(video):
                yield self._record(name, first, *part.encode())
        assert isinstance(part, Header)  # the last one
        self._note(name, first, clip, part.digest)

    @contextlib.contextmanager
    def _opened(self, source: Source) -> Iterator[Video]:
        """Open the video that is stored: the source, or its proxy."""
        with contextlib.ExitStack() as stack:
            if self._settings.proxy:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                source = proxy.encode(source, Path(folder) / "proxy.mp4", self._settings.proxy)
            yield stack.enter_context(opened(source))

    def _record(self, name: str, first: int, text: str, items: Sequence[bytes]) -> VideoRecord:
        self._count += 1
        return VideoRecord(name, self._count - first - 1, text, tuple(items))

    def _note(self, name: str, first: int, clip: Sample, digest: str) -> None:
        self.found[name] = {
            "timestamps": clip.timestamps.tolist(),
            "duration": float(clip.duration),
            "fps": float(clip.fps),
            "digest": digest,
            "first": first,
            "records": self._count - first,
        }

    def read_back(self, path: Path, entry: dict[str, Any]) -> None:
        """Decode the sampled frames of every video from the finished shard and compare them."""
        entries = [
            Entry(name, facts["digest"], 0, facts["first"], facts["records"])
            for name, facts in self.found.items()
            if name in self._frames and "error" not in facts
        ]
        store = VideoStore(path.parent, [entry | {"name": path.name}], entries)
        for place in entries:
            how = self._settings.sampling, self._settings.num_frames
            try:
                same = _hash(sampling.sample_frames(store.video(place.digest), *how))
            except VideoError as error:
                raise _Unusable(place.video, error.reason) from error
            if same != self._frames[place.video]:
                reason = (
                    "its packets do not give the frames of the file, is it damaged? repair it or "
                )
                reason += "use --frames=png"
                raise _Unusable(place.video, reason)


def _hash(clip: Sample) -> str:
    found = hashlib.sha256(np.append(clip.timestamps, [clip.duration, clip.fps]).tobytes())
    found.update(clip.frames.data)
    return found.hexdigest()


def _encoded(frame: np.ndarray, encoding: str) -> bytes:
    return cv2.imencode(f".{encoding}", frame[..., ::-1])[1].tobytes()


def _divided(images: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield the images in lists of at most `LARGE` bytes, or of one image."""
    held: list[bytes] = []
    for image in images:
        if held and sum(map(len, held)) + len(image) > LARGE:
            yield held
            held = []
        held.append(image)
    yield held
