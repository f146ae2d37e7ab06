"""Read request bodies within limits of size, time and number; decode the media they name."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import numpy as np
from starlette.requests import ClientDisconnect, Request

from tpo_jax import families
from tpo_jax.models.pictures import Pictures
from tpo_jax.serving.decoder import Cache, MediaDecoder
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.fields import parse_json
from tpo_jax.serving.media import Media, check_count
from tpo_jax.serving.messages import Shown
from tpo_jax.serving.models import ServedModel, Visual
from tpo_jax.serving.settings import MB, ServerSettings

BODIES_OVER_ONE = 4  # bytes of all large bodies in flight, in units of the largest allowed
SMALL_BODY = 1 << 18


def need_type(request: Request, kind: str) -> None:
    """Raise `ApiError` for another content type; other sites cannot send these without consent."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise ApiError(415, f"the content type must be {kind}", "invalid_content_type")


class Intake:
    """Reads bodies and media within the limits of the settings."""

    def __init__(self, settings: ServerSettings, media: Media, decoder: MediaDecoder):
        self.settings, self.media, self.decoder = settings, media, decoder
        self.most = settings.max_upload_mb * MB
        self._cache = Cache()
        self._requests, self._size = 0, 0  # in flight: being read and decoded

    async def close(self) -> None:
        """End the decoding processes and remove temporary files."""
        await self.decoder.close()
        self.media.close()

    @contextmanager
    def reserved(self, request: Request) -> Iterator[None]:
        """Count a request, and the bytes of its body, as in flight until the block ends.

        Raises:
            ApiError: Too many are in flight, or the announced length is too large.
        """
        if int(request.headers.get("content-length", 0)) > self.most:
            raise self._too_large()
        if self._requests >= self.settings.max_waiting:
            raise self._busy()
        request.state.size = 0
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._size -= request.state.size

    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the pieces of a body, inside `reserved`.

        Only large bodies count towards the limit on bytes in flight, so they cannot block small
        ones.

        Raises:
            ApiError: The body is too large or too slow, or too many bytes are in flight.
        """
        size, seconds = 0, self.settings.media_seconds
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.most:
                        raise self._too_large()
                    if size > SMALL_BODY:
                        self._size += size - request.state.size
                        request.state.size = size
                        if self._size > BODIES_OVER_ONE * self.most:
                            raise self._busy()
                    yield chunk
        except TimeoutError as error:
            raise ApiError(
                408, f"reading the body takes longer than {seconds:g} s", "too_slow"
            ) from error
        except ClientDisconnect as error:
            raise ApiError(499, "the client disconnected") from error

    async def json(self, request: Request) -> dict:
        """Return the JSON object of a body; raise `ApiError` if it is none."""
        need_type(request, "application/json")
        data = b"".join([chunk async for chunk in self.body(request)])
        return await asyncio.to_thread(parse_json, data)

    def _busy(self) -> ApiError:
        return ApiError(429, "too many requests at a time; try again later", "busy")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"larger than {self.settings.max_upload_mb} MB", "too_large")

    async def look(self, model: ServedModel, shown: Shown, num_frames: int) -> Visual:
        """Return the parts of a conversation as the model sees them; equal ones are decoded once.

        Args:
            model: Says how frames are resized.
            shown: One video, or any number of images.
            num_frames: Frames sampled from a video.

        Raises:
            ApiError: A part cannot be found, fetched or decoded, or a video has too many frames.
        """
        kind, parts = shown
        if kind == "frames":
            check_count(len(parts), self.settings.max_frames)
        async with self.media.files(parts) as files:
            asked = num_frames if kind == "video" else 0
            key = (kind, asked, model.name, *(file.key for file in files))

            async def make() -> Visual:
                arrays = await self.decoder.decode(
                    {
                        "kind": kind,
                        "paths": [str(file.path) for file in files],
                        "rule": self.settings.sampling,
                        "num_frames": num_frames,
                        "family": families.of(model.config).name,
                        "config": dataclasses.asdict(model.config),
                    }
                )
                return _visual(key, arrays)

            try:
                return await self._cache.get(key, make)
            except ApiError as error:
                where = parts[0].param if len(parts) == 1 else "messages"
                message = f"{where}: {error.message}"
                raise ApiError(error.status, message, error.code, where) from error


def _visual(key: tuple, arrays: dict[str, np.ndarray]) -> Visual:
    if "frames" in arrays:
        times = tuple(arrays["times"].tolist())
        return Visual(key, arrays["frames"], times, float(arrays["duration"]))
    tokens = tuple(arrays.pop("tokens").tolist())
    return Visual(key, Pictures(**arrays, tokens=tokens), (), 0.0)
