"""Frame-exact video decoding.

The presentation times of all packets are read first, without decoding: from the index of an MP4 or
MOV file, else by a walk over the packets (eight microseconds each). Sorted, these times are the
frames in display order, and they name every frame that the decoder returns. So a seek may land
anywhere: where it landed is known, and so is, beforehand, whether reading on or jumping to a key
frame is shorter.

Where packets have no usable times (raw streams, AVI with B-frames) or the decoder contradicts them,
frames are counted by decoding the file once from start to end.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from tpo_jax.video.reader import Reader, Source, VideoError

__all__ = ["Source", "Video", "VideoError", "VideoInfo", "decode", "opened", "probe"]

# What emptying and refilling the decoder costs, in decoded frames (measured: 12 to 15).
_SEEK_COST = 14
_LOST = -(10**9)  # the position after a seek that went wrong: far from every key frame
# Alternate reference frames of VP8 are packets that show nothing.
_PACKETS_ARE_NOT_FRAMES = ("vp8",)


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
    """Open a video, from a path or from the bytes of an encoded clip. Raises `VideoError`."""
    video = Video(source)
    try:
        yield video
    finally:
        video.close()


class Video:
    """One open video; `info` and `timestamps` (float64 `[num_frames]`, seconds) describe it."""

    def __init__(self, source: Source):
        self._reader = reader = Reader(source)
        self._position = 0  # of the frame decoded last
        packets = reader.packets()
        # Packets ahead of the first key frame, as in a cut broadcast, never become frames.
        shown = packets.times >= (reader.time or 0)
        order = np.argsort(packets.times[shown], kind="stable")
        self._times = packets.times[shown][order]  # ticks
        self._keys = np.flatnonzero(packets.is_key[shown][order])
        self._trusted = self._is_told(len(packets.times))
        if not self._trusted:
            self._count()
        elif packets.indexed:
            ticks = self._times - self._times[0]
            self.timestamps = ticks * reader.tick.numerator / reader.tick.denominator
        else:
            self.timestamps = reader.seconds(self._times)
        self._describe()

    def close(self) -> None:
        """Close the file and the decoder."""
        self._reader.close()

    def select(self, choose: Callable[["Video"], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames that `choose(self)`, int64 indices, asks for; return both.

        `choose` is asked again where decoding shows that the file holds other frames than its
        packets promise, for `info` and `timestamps` have then changed.
        """
        indices = choose(self)
        promised = self.info.num_frames
        try:
            return indices, self._decode(indices)
        except _TimesAreWrong:
            self._count()
            self._describe()
        indices = choose(self)
        if self.info.num_frames <= indices.max() < promised:
            reason = f"damaged: {self.info.num_frames} of {promised} frames can be decoded"
            self._reader.fail(reason)
        return indices, self._decode(indices)

    def _decode(self, indices: np.ndarray) -> np.ndarray:
        outside = indices[(indices < 0) | (indices >= self.info.num_frames)]
        if len(outside):
            raise IndexError(
                f"{self._reader.name}: no frame {outside[0]} in a video of {self.info.num_frames} "
                "frames"
            )
        frames = np.empty((len(indices), self.info.height, self.info.width, 3), np.uint8)
        order = np.argsort(indices, kind="stable")
        previous = None
        for slot in order:
            if previous is not None and indices[slot] == indices[previous]:
                frames[slot] = frames[previous]
            else:
                self._go_to(int(indices[slot]))
                self._convert(frames[slot])
            previous = slot
        return frames

    def _convert(self, out: np.ndarray) -> None:
        width, height = self._reader.frame.width, self._reader.frame.height
        if (width, height) != self._reader.size:
            self._reader.fail(f"frame {self._position} is {width}x{height} pixels")
        if not self._reader.convert(out):
            self._reader.fail(f"frame {self._position} cannot be converted to RGB")

    def _go_to(self, index: int) -> None:
        """Decode frame `index`, from a key frame where that is shorter than reading on."""
        for key in self._keys[self._keys <= index][:-4:-1]:
            if key - _SEEK_COST <= self._position or self._seek(int(key), index):
                break
        if not 0 <= self._position <= index:
            # Seeks that miss three times over are not worth another try.
            if self._position == _LOST:
                self._keys = self._keys[:0]
            self._restart()
        while self._position < index:
            if not self._reader.grab():
                self._contradicted(f"decoding stops at frame {self._position + 1}")
            self._position += 1
            if self._trusted and self._reader.time != self._times[self._position]:
                self._contradicted(f"frame {self._position} is out of order")

    def _seek(self, key: int, index: int) -> bool:
        """Jump to a key frame; false if that landed behind `index` or between frames."""
        self._position = _LOST
        if self._reader.seek(int(self._times[key])) and self._reader.time is not None:
            found = int(np.searchsorted(self._times, self._reader.time))
            if found <= index and self._times[found] == self._reader.time:
                self._position = found
        return self._position != _LOST

    def _contradicted(self, reason: str) -> None:
        if self._trusted:
            raise _TimesAreWrong
        self._reader.fail(reason)

    def _is_told(self, num_packets: int) -> bool:
        """Return whether the times of the packets tell the frames."""
        declared = self._reader.declared
        return bool(
            len(self._times)
            and self._times[0] == self._reader.time
            and 0 in self._keys[:1]
            and np.all(np.diff(self._times) > 0)
            # Far more packets than frames: the two fields of interlaced frames come one by one.
            and (declared <= 0 or num_packets < 1.5 * declared + 16)
            and self._reader.codec not in _PACKETS_ARE_NOT_FRAMES
        )

    def _count(self) -> None:
        """Take the frames as the decoder returns them, from the first to the last."""
        self._trusted, self._keys = False, np.zeros(0, np.int64)
        self._restart()
        times = []
        while self._reader.grab():
            times.append(self._reader.frame.pts)
        self._times = np.array([time for time in times if time is not None], np.int64)
        if len(self._times) == len(times) and np.all(np.diff(self._times) > 0):
            self.timestamps = self._reader.seconds(self._times)
        else:
            self.timestamps = np.arange(len(times)) * 1000 / float(self._reader.rate) / 1000
        self._restart()

    def _restart(self) -> None:
        self._reader.restart()
        self._position = -1

    def _describe(self) -> None:
        n, fps, span = len(self.timestamps), float(self._reader.rate), float(self.timestamps[-1])
        # The container's rate is exact for a constant rate and a guess for a variable one.
        if n > 1 and abs((n - 1) / span / fps - 1) > 0.01:
            fps = (n - 1) / span
        width, height = self._reader.size[:: -1 if self._reader.turns % 2 else 1]
        self.info = VideoInfo(n, fps, width, height, n / fps)


class _TimesAreWrong(Exception):
    """The decoder returned other frames than the packets promised."""
