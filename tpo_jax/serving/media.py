"""Find the bytes of a part: in an allowed folder, in the request, uploaded, or on the web.

What is not a local file is written to a temporary one and removed with the request. Uploads are
removed when newer ones need the space, and all of them at the end.
"""

import asyncio
import base64
import binascii
import hashlib
import itertools
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.fetching import fetch
from tpo_jax.serving.messages import FRAMES, MediaPart
from tpo_jax.serving.models import names
from tpo_jax.serving.settings import MB, ServerSettings
from tpo_jax.video.sampling import frame_files

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".ts", ".ogv", ".flv"}
LISTED = 5000
UPLOADS_OVER_ONE = 4  # space for uploads, in units of the largest allowed


class File(NamedTuple):
    """A file to decode; equal keys hold equal bytes."""

    key: tuple
    path: Path


class Media:
    """Turns the parts of messages into files."""

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.folders = tuple(dict.fromkeys(folder.resolve() for folder in settings.folders))
        called = names([*map(str, self.folders)]) if len(self.folders) > 1 else [""]
        self._called = dict(
            zip((f"{name}/" if name else "" for name in called), self.folders, strict=False)
        )
        self.temporary = Path(tempfile.mkdtemp(prefix="tpo_jax_serve_"))
        self._uploads: OrderedDict[str, File] = OrderedDict()
        # Slow servers elsewhere keep no other work waiting: a thread for each request.
        self._downloads = ThreadPoolExecutor(settings.max_waiting, "download")

    def close(self) -> None:
        """Remove temporary files."""
        self._downloads.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.temporary, ignore_errors=True)

    @asynccontextmanager
    async def files(self, parts: tuple[MediaPart, ...]) -> AsyncIterator[list[File]]:
        """Yield the parts as files, which exist until the block ends; frames are one file each.

        Raises:
            ApiError: A part is not found, not allowed or too large.
        """
        with tempfile.TemporaryDirectory(dir=self.temporary) as directory:
            found: list[File] = []
            for i, part in enumerate(parts):
                try:
                    for url in frame_urls(part.url, self.settings.max_frames):
                        found.append(await self._file(url, Path(directory) / f"{i}_{len(found)}"))
                except ApiError as error:
                    message = f"{part.param}: {error.message}"
                    raise ApiError(error.status, message, error.code, part.param) from error
            yield found

    async def _file(self, url: str, target: Path) -> File:
        scheme = url.partition(":")[0].lower() if ":" in url else ""
        if scheme == "data":
            return await asyncio.to_thread(self._embedded, url, target)
        if scheme == "upload":
            if url not in self._uploads:
                raise ApiError(
                    404, "no such upload, or it was removed to free space; upload it again", "gone"
                )
            return self._uploads[url]
        if scheme == "media":
            return await asyncio.to_thread(self.named, url.partition(":")[2])
        if scheme in ("http", "https"):
            if not self.settings.allow_urls:
                raise ApiError(403, "URLs are fetched only with --allow_urls", "not_allowed")
            limits = self.settings.max_upload_mb * MB, self.settings.media_seconds
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._downloads, fetch, url, target, *limits)
            return await asyncio.to_thread(_hashed, target)
        return await asyncio.to_thread(self.local, _path(url) if scheme == "file" else url)

    def local(self, path: str) -> File:
        """Return a file or directory of frames in an allowed folder; raise `ApiError` otherwise."""
        try:
            resolved = Path(path).resolve()
            allowed = self._is_inside(resolved)
            frames = frame_files(resolved) if allowed and resolved.is_dir() else []
            allowed &= all(self._is_inside(frame.resolve()) for frame in frames)
        except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
            allowed = False
        # Before checking that it exists: that must not leak for files outside the folders.
        if not allowed:
            raise ApiError(403, "local files must be inside --media_folders", "not_allowed")
        try:
            states = [_state(file) for file in (resolved, *frames)]
        except OSError as error:
            raise ApiError(404, "no such file", "not_found") from error
        return File(("path", str(resolved), *states), resolved)

    def named(self, name: str) -> File:
        """Return the file that `listed` calls so; raise `ApiError` if there is none."""
        for prefix, folder in self._called.items():
            if name.startswith(prefix):
                return self.local(str(folder / name.removeprefix(prefix)))
        raise ApiError(404, "no such file", "not_found")

    def video(self, name: str) -> Path:
        """Return the path of a listed video; raise `ApiError` if there is none of that name."""
        path = self.named(name).path
        if path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
            raise ApiError(404, "no such video", "not_found")
        return path

    def listed(self) -> tuple[list[str], bool]:
        """Return names of videos inside the allowed folders, at most `LISTED`, and whether there
        are more.

        A name is the path inside its folder. Of several folders it begins with the folder's name,
        so that no path of this machine shows.
        """
        found = (
            f"{prefix}{path.relative_to(folder).as_posix()}"
            for prefix, folder in self._called.items()
            for path in folder.rglob("*")
            if path.suffix.lower() in VIDEO_SUFFIXES
            if path.is_file() and self._is_inside(path.resolve())
        )
        names = list(itertools.islice(found, LISTED))
        return sorted(names), next(found, None) is not None

    def _is_inside(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self.folders)

    def _embedded(self, url: str, target: Path) -> File:
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ApiError(400, "a data URL must be data:TYPE;base64,DATA", "invalid_media")
        try:
            decoded = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, f"not base64: {error}", "invalid_base64") from error
        if not decoded:
            raise ApiError(400, "empty", "invalid_base64")
        target.write_bytes(decoded)
        return File(("bytes", hashlib.sha256(decoded).digest()), target)

    async def upload(self, chunks: AsyncIterator[bytes]) -> str:
        """Store the bytes of a file; return a URL for it that cannot be guessed."""
        target = self.temporary / secrets.token_urlsafe(16)
        try:
            with target.open("wb") as file:
                async for chunk in chunks:
                    file.write(chunk)
            if not target.stat().st_size:
                raise ApiError(400, "an empty file", "invalid_media")
            kept = await asyncio.to_thread(_hashed, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        url = f"upload:{target.name}"
        self._uploads[url] = kept
        limit = UPLOADS_OVER_ONE * self.settings.max_upload_mb * MB
        while sum(file.path.stat().st_size for file in self._uploads.values()) > limit:
            self._uploads.popitem(last=False)[1].path.unlink(missing_ok=True)
        return url


def frame_urls(url: str, most: int) -> list[str]:
    """Return the URLs of a video's frames if a data URL holds frames, else the URL alone.

    `data:video/jpeg;base64,A,B` holds the JPEG images A and B, as in vLLM's API.

    Raises:
        ApiError: There are more than `most` frames, or none.
    """
    if url[: len(FRAMES)].lower() != FRAMES:
        return [url]
    head, comma, frames = url.partition(",")
    if not comma or head[len(FRAMES) :] != "base64":
        raise ApiError(400, f"frames must be in {FRAMES}base64,FRAME,FRAME", "invalid_media")
    check_count(frames.count(",") + 1, most)
    return [f"{head},{frame}" for frame in frames.split(",")]


def check_count(frames: int, most: int) -> None:
    """Raise `ApiError` if a video has too many frames."""
    if frames > most:
        raise ApiError(400, f"{frames} frames, at most {most} are allowed", "too_large")


def _state(path: Path) -> tuple[str, int, int]:
    """Return what changes with the bytes of a file."""
    stat = path.stat()
    return path.name, stat.st_mtime_ns, stat.st_size


def _hashed(path: Path) -> File:
    with path.open("rb") as file:
        return File(("bytes", hashlib.file_digest(file, "sha256").digest()), path)


def _path(url: str) -> str:
    """Return the path of a `file` URL."""
    try:
        parts = urlsplit(url)
    except ValueError as error:  # half an IPv6 address
        raise ApiError(400, f"not a URL: {error}", "invalid_media") from error
    if parts.netloc not in ("", "localhost"):
        message = "a file URL must be file:///PATH, absolute; give a relative path without file:"
        raise ApiError(400, message, "invalid_media")
    return unquote(parts.path)
