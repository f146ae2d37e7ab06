"""Frame-exact video decoding.

The presentation times of all packets are read first, without decoding: from the index of an MP4 or
MOV file, else by a walk over the packets (eight microseconds each). Sorted, these times are the
frames in display order, and they name every frame that the decoder returns. So a seek may land
anywhere: where it landed is known. Whether reading on or jumping to a key frame is shorter is known
beforehand.

Where packets have no usable times (raw streams, AVI with B-frames) or the decoder contradicts them,
frames are counted by decoding the file once from start to end.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np

from tpo_jax.video.files import FileReader
from tpo_jax.video.packets import StoredVideo
from tpo_jax.video.reader import Reader, VideoError
from tpo_jax.video.stored import StoredReader
from tpo_jax.video.timeline import Timeline, counted

__all__ = ["Source", "Video", "VideoError", "VideoInfo", "decode", "name_of", "opened", "probe"]

Source = str | os.PathLike | bytes | StoredVideo  # a file, the bytes of one, or its packets

# Containers that do not know a rate give that of their clock, such as 90,000.
_MOST_FPS = 1000
# What flushing and refilling the decoder costs, in decoded frames (measured: 12 to 15).
_SEEK_COST = 14
_LOST = -(10**9)  # the position before a seek, and after one that went wrong: far from every frame


class VideoInfo(NamedTuple):
    """What a video is: frames that can be decoded, average frames per second, pixels, seconds."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float


def probe(source: Source) -> VideoInfo:
    """Return size, length and rate of a video, rotation applied to width and height.

    Raises:
        VideoError: The file is missing, cut off, or has no frame that can be decoded.
    """
    with opened(source) as video:
        return video.info


def decode(source: Source, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Decode the frames at `indices` (display order; any order, repeats allowed).

    Returns:
        uint8 `[len(indices), height, width, 3]`, RGB, rotation applied.

    Raises:
        VideoError: The video cannot be read.
        IndexError: An index is outside of the video.
    """
    with opened(source) as video:
        return video.select(lambda _: np.asarray(indices, np.int64))[1]


@contextmanager
def opened(source: Source) -> Iterator["Video"]:
    """Open a video. Raises `VideoError`."""
    video = Video(source)
    try:
        yield video
    finally:
        video.close()


def name_of(source: Source) -> str:
    """Return the name of a source for messages."""
    if isinstance(source, StoredVideo):
        return source.name
    return "<bytes>" if isinstance(source, bytes) else os.fspath(source)


class Video:
    """One open video; `info` and `timestamps` (float64 `[num_frames]`, seconds) describe it.

    Attributes:
        reader: What decodes it.
        timeline: Its frames, as far as is known yet.
    """

    timeline: Timeline

    def __init__(self, source: Source):
        self.reader: Reader
        if isinstance(source, StoredVideo):
            self.reader = StoredReader(source)
        else:
            self.reader = FileReader(source)
        self._position = 0 if self.reader.started else _LOST  # of the frame decoded last
        self._promised = self.reader.timeline()
        if self._promised is not None:
            self._describe(self._promised)
        else:
            self.count()

    def close(self) -> None:
        """Close the file and the decoder."""
        self.reader.close()

    def select(self, choose: Callable[["Video"], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames at the indices `choose(self)`, int64 `[n]`; return indices and frames.

        `choose` is called again where decoding shows that the file holds other frames than its
        packets promise, for `info` and `timestamps` have then changed.
        """
        indices = choose(self)
        promised = self.info.num_frames
        try:
            return indices, self._decode(indices)
        except _TimesAreWrong:
            self.count()
        indices = choose(self)
        if self.info.num_frames <= indices.max() < promised:
            reason = f"damaged: {self.info.num_frames} of {promised} frames can be decoded"
            self.reader.fail(reason)
        return indices, self._decode(indices)

    def count(self) -> None:
        """Count the frames by decoding all of them, and take their times from the decoder."""
        self._restart()
        times = []
        while self.reader.grab():
            times.append(self.reader.frame.pts)
        timeline, promised = counted(times), self._promised
        if promised and not len(timeline.times) and promised.num_frames == len(times):
            # Merely out of order: FFmpeg gives the frames of an AVI their times in decoding order.
            timeline = promised._replace(keys=timeline.keys, trusted=False)
        self._describe(timeline)
        self._restart()

    def _decode(self, indices: np.ndarray) -> np.ndarray:
        outside = indices[(indices < 0) | (indices >= self.info.num_frames)]
        if len(outside):
            raise IndexError(
                f"{self.reader.name}: no frame {outside[0]} in a video of {self.info.num_frames} "
                "frames"
            )
        frames = np.empty((len(indices), self.info.height, self.info.width, 3), np.uint8)
        order = np.argsort(indices, kind="stable")
        shares = self._shares(indices, order)
        if len(shares) == 1:
            self._fill(frames, indices, order)
            return frames

        def fill(slots: np.ndarray) -> None:
            other = copy.copy(self)
            other.reader = self.reader.beside(len(shares))
            with closing(other):
                other._fill(frames, indices, slots)

        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(fill, shares))  # of several errors, that of the earliest frame is raised
        return frames

    def _shares(self, indices: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
        """Divide the slots of the result, ascending by index, among readers that work at once."""
        ascending = indices[order]
        spans = np.array(self._spans(np.unique(indices)), np.int64).reshape(-1, 2)
        count = min(self.reader.decoders, os.cpu_count() or 1, max(1, len(spans)))
        # Every span is decoded by one reader, and all readers decode about as many frames.
        work = np.cumsum(spans[:, 1] - spans[:, 0] + 1)
        bounds = np.searchsorted(work, work[-1:] * np.arange(1, count) / count)
        ends = np.searchsorted(ascending, spans[bounds, 1], side="right")
        return [slots for slots in np.split(order, ends) if len(slots)] or [order]

    def _fill(self, frames: np.ndarray, indices: np.ndarray, slots: np.ndarray) -> None:
        """Decode the frames of some slots, ascending by index."""
        if not self.reader.started:
            self._position = _LOST
        self.reader.expect(self._spans(np.unique(indices[slots])))
        previous = None
        for slot in slots:
            if previous is not None and indices[slot] == indices[previous]:
                frames[slot] = frames[previous]
            else:
                self._go_to(int(indices[slot]))
                self._convert(frames[slot])
            previous = slot

    def _convert(self, out: np.ndarray) -> None:
        width, height = self.reader.frame.width, self.reader.frame.height
        if (width, height) != self.reader.size:
            self.reader.fail(f"frame {self._position} is {width}x{height} pixels")
        if not self.reader.convert(out):
            self.reader.fail(f"frame {self._position} cannot be converted to RGB")

    def _spans(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Return the stretches from a key frame to a wanted frame that `_go_to` will decode."""
        spans: list[tuple[int, int]] = []
        for index in indices.tolist():
            before = self.timeline.keys[self.timeline.keys <= index]
            key = int(before[-1]) if len(before) else 0
            if spans and key - _SEEK_COST <= spans[-1][1]:
                spans[-1] = spans[-1][0], index
            else:
                spans.append((key, index))
        return spans

    def _go_to(self, index: int) -> None:
        """Decode frame `index`, from a key frame where that is shorter than reading on."""
        keys = self.timeline.keys
        for key in keys[keys <= index][:-4:-1]:
            if key - _SEEK_COST <= self._position <= index or self._seek(int(key), index):
                break
        if not 0 <= self._position <= index:
            # After seeks have missed three times, no more are tried.
            if self._position == _LOST:
                self.timeline = self.timeline._replace(keys=keys[:0])
            self._restart()
        while self._position < index:
            if not self.reader.grab():
                self._contradicted(f"decoding stops at frame {self._position + 1}")
            self._position += 1
            trusted = self.timeline.trusted
            if trusted and self.reader.time != self.timeline.times[self._position]:
                self._contradicted(f"frame {self._position} is out of order")

    def _seek(self, key: int, index: int) -> bool:
        """Jump to a key frame; false if that landed after `index` or between frames."""
        self._position = _LOST
        times = self.timeline.times
        if self.reader.seek(int(times[key])) and self.reader.time is not None:
            found = int(np.searchsorted(times, self.reader.time))
            if found <= index and times[found] == self.reader.time:
                self._position = found
        return self._position != _LOST

    def _contradicted(self, reason: str) -> None:
        if self.timeline.trusted:
            raise _TimesAreWrong
        self.reader.fail(reason)

    def _restart(self) -> None:
        self.reader.restart()
        self._position = -1

    def _describe(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.timestamps = timeline.seconds(self.reader.clock)
        n, fps, span = timeline.num_frames, float(self.reader.clock.rate), self.timestamps[-1]
        # The container's rate is exact for a constant rate and a guess for a variable one.
        if n > 1 and abs((n - 1) / span / fps - 1) > 0.01:
            fps = float((n - 1) / span)
        if fps > _MOST_FPS:
            self.reader.fail(f"no usable frame rate ({fps:g} frames per second)")
        width, height = self.reader.size[:: -1 if self.reader.turns % 2 else 1]
        self.info = VideoInfo(n, fps, width, height, n / fps)


class _TimesAreWrong(Exception):
    """The decoder returned other frames than the packets promised."""
