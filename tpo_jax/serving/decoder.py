"""Decode media in limited processes; equal requests are decoded once."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import numpy as np

from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.settings import MB, ServerSettings

PROCESSES = 2
KEPT = 16  # decoded videos


class MediaDecoder:
    """A pool of decoding processes; one that is late or broken is killed and replaced."""

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self._slots = asyncio.Semaphore(PROCESSES)
        self._idle: list[asyncio.subprocess.Process] = []

    async def decode(self, request: dict) -> dict[str, np.ndarray]:
        """Return the arrays of `decode_process.read`.

        Raises:
            ApiError: A file cannot be decoded within the limits.
        """
        async with self._slots:
            process = self._idle.pop() if self._idle else await self._start()
            try:
                async with asyncio.timeout(self.settings.media_seconds):
                    arrays = await _ask(process, request)
            except TimeoutError as error:
                await _end(process)
                reason = f"decoding takes longer than {self.settings.media_seconds:g} s"
                raise ApiError(400, reason, "invalid_media") from error
            except (asyncio.IncompleteReadError, OSError) as error:
                await _end(process)
                raise ApiError(400, "the decoder crashed on it", "invalid_media") from error
            except asyncio.CancelledError:
                await _end(process)
                raise
            except ApiError:
                self._idle.append(process)
                raise
            self._idle.append(process)
            return arrays

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await _end(self._idle.pop())

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tpo_jax.serving.decode_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
        )
        assert process.stdin
        limits = {"memory": self.settings.decode_memory_mb * MB}
        process.stdin.write(json.dumps(limits).encode() + b"\n")
        return process


def _environment() -> dict[str, str]:
    """Return the variables of a decoding process: no secrets."""
    kept = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return environment | threads


async def _ask(process: asyncio.subprocess.Process, request: dict) -> dict[str, np.ndarray]:
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(request).encode() + b"\n")
    await process.stdin.drain()
    line = await process.stdout.readuntil(b"\n")
    reply = json.loads(line)
    if "error" in reply:
        raise ApiError(400, reply["error"], "invalid_media")
    data = await process.stdout.readexactly(reply["bytes"])
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


class Cache:
    """The latest results by key; concurrent requests for one key wait for one computation."""

    def __init__(self, size: int = KEPT):
        self.size = size
        self._tasks: OrderedDict[Hashable, asyncio.Task] = OrderedDict()

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of `make()`, computed if absent; errors are not stored."""
        if key not in self._tasks:
            task = asyncio.ensure_future(make())
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._forget_failed(key, task))
            while len(self._tasks) > self.size:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(key)
        return await self._tasks[key]

    def _forget_failed(self, key: Hashable, task: asyncio.Task) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._tasks.get(key) is task:
            del self._tasks[key]
