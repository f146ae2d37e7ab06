"""Frame-exact video decoding with PyAV (FFmpeg).

The presentation times of all packets are read first, without decoding: from the index of an MP4 or
MOV file, else by a walk over the packets (eight microseconds each). Sorted, these times are the
frames in display order, and they name every frame that the decoder returns. So a seek may land
anywhere: where it landed is known, and so is, beforehand, whether reading on or jumping to a key
frame is shorter.

Where packets have no usable times (raw streams, AVI with B-frames) or the decoder contradicts them,
frames are counted by decoding the file once from start to end.

Colours are those of swscale's bicubic conversion to BGR, bit for bit, as OpenCV has them. For 8-bit
4:2:0 of even height decord agrees; for an odd height or ten bits it uses other chroma filters.
"""

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from tpo_jax.video import containers

Source = str | os.PathLike | bytes  # a file, or the bytes of one
Packets = tuple[np.ndarray, np.ndarray]  # times and key flags

# What emptying and refilling the decoder costs, in decoded frames (measured: 12 to 15).
_SEEK_COST = 14
_LOST = -(10**9)  # the position after a seek that went wrong: far from every key frame
_MOST_ERRORS = 1000  # in a row: the rest of the file is unreadable
# Alternate reference frames of VP8 are packets that show nothing.
_PACKETS_ARE_NOT_FRAMES = ("vp8",)
_KEY, _DISCARDED = 1, 2  # flags of an entry of FFmpeg's index
_NO_STREAM = "no video stream that can be read (not a video, audio only, or damaged)"
# Options of FFmpeg for every file, which a process may narrow down before it opens one.
OPEN_OPTIONS = {"protocol_whitelist": "file"}


class VideoError(ValueError):
    """A video that cannot be read: which, and why, in one line."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


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
        self._source = source
        self._name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        offsets = self._check_file()
        self._reformatter = VideoReformatter()
        self._frame: av.VideoFrame
        self._begin()
        if not self._grab():
            codec = self._stream.codec_context.name
            self._fail(f"no frame can be decoded (codec {codec})")
        self._position = 0  # of the frame decoded last
        self._size = self._frame.width, self._frame.height
        self._turns = round(self._frame.rotation / 90) % 4  # quarters, counterclockwise
        indexed = self._indexed_packets(offsets)
        times, is_key = self._read_packets() if indexed is None else indexed
        # Packets ahead of the first key frame, as in a cut broadcast, never become frames.
        shown = times >= (self._time or 0)
        order = np.argsort(times[shown], kind="stable")
        self._times, self._keys = times[shown][order], np.flatnonzero(is_key[shown][order])
        self._trusted = self._is_told(len(times))
        if not self._trusted:
            self._count()
        elif indexed is None:
            self.timestamps = self._seconds(self._times)
        else:
            ticks = self._times - self._times[0]
            self.timestamps = ticks * self._tick.numerator / self._tick.denominator
        self._describe()

    def close(self) -> None:
        """Close the file and the decoder."""
        self._container.close()

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
            self._fail(f"damaged: {self.info.num_frames} of {promised} frames can be decoded")
        return indices, self._decode(indices)

    def _decode(self, indices: np.ndarray) -> np.ndarray:
        outside = indices[(indices < 0) | (indices >= self.info.num_frames)]
        if len(outside):
            raise IndexError(
                f"{self._name}: no frame {outside[0]} in a video of {self.info.num_frames} frames"
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
        """Convert the frame decoded last to RGB, into `out`."""
        width, height = self._frame.width, self._frame.height
        if (width, height) != self._size:
            self._fail(f"frame {self._position} is {width}x{height} pixels")
        try:
            # The order of the channels matters to the rounding of swscale.
            picture = self._reformatter.reformat(
                self._progressive(self._frame), format="bgr24", interpolation="BICUBIC"
            )
        except (av.FFmpegError, ValueError):
            self._fail(f"frame {self._position} cannot be converted to RGB")
        plane = picture.planes[0]
        pixels = np.lib.stride_tricks.as_strided(
            np.frombuffer(memoryview(plane), np.uint8), (height, width, 3), (plane.line_size, 3, 1)
        )
        if self._turns:
            out[...] = np.rot90(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), self._turns)
        else:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=out)

    @functools.cached_property
    def _graph(self) -> av.filter.Graph:
        graph = av.filter.Graph()
        source, sink = graph.add_buffer(template=self._stream), graph.add("buffersink")
        graph.link_nodes(source, graph.add("setfield", "prog"), sink).configure()
        return graph

    def _progressive(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return the frame marked as progressive, so that its fields are converted together."""
        if not frame.interlaced_frame:
            return frame
        self._graph.vpush(frame)
        return self._graph.vpull()

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
            if not self._grab():
                self._contradicted(f"decoding stops at frame {self._position + 1}")
            self._position += 1
            if self._trusted and self._time != self._times[self._position]:
                self._contradicted(f"frame {self._position} is out of order")

    def _seek(self, key: int, index: int) -> bool:
        """Jump to a key frame; false if that landed behind `index` or between frames."""
        self._position = _LOST
        try:
            self._container.seek(int(self._times[key]), stream=self._stream)
        except av.FFmpegError:
            return False
        self._frames = self._container.decode(self._stream)
        if self._grab() and self._time is not None:
            found = int(np.searchsorted(self._times, self._time))
            if found <= index and self._times[found] == self._time:
                self._position = found
        return self._position != _LOST

    def _contradicted(self, reason: str) -> None:
        if self._trusted:
            raise _TimesAreWrong
        self._fail(reason)

    def _is_told(self, num_packets: int) -> bool:
        """Return whether the times of the packets tell the frames."""
        declared = self._stream.frames or float(
            (self._stream.duration or 0) * self._tick * self._rate
        )
        return bool(
            len(self._times)
            and self._times[0] == self._time
            and 0 in self._keys[:1]
            and np.all(np.diff(self._times) > 0)
            # Far more packets than frames: the two fields of interlaced frames come one by one.
            and (declared <= 0 or num_packets < 1.5 * declared + 16)
            and self._stream.codec_context.name not in _PACKETS_ARE_NOT_FRAMES
        )

    def _count(self) -> None:
        """Take the frames as the decoder returns them, from the first to the last."""
        self._trusted, self._keys = False, np.zeros(0, np.int64)
        self._restart()
        times = []
        while self._grab():
            times.append(self._frame.pts)
        self._times = np.array([time for time in times if time is not None], np.int64)
        if len(self._times) == len(times) and np.all(np.diff(self._times) > 0):
            self.timestamps = self._seconds(self._times)
        else:
            self.timestamps = np.arange(len(times)) * 1000 / self._fps / 1000
        self._restart()

    def _seconds(self, times: np.ndarray) -> np.ndarray:
        """Return times from the first frame, float64; their rounding is part of every shard."""
        milliseconds = (times - (self._stream.start_time or 0)) * float(self._tick) * 1000
        return (milliseconds - milliseconds[0]) / 1000

    def _describe(self) -> None:
        n, fps, span = len(self.timestamps), self._fps, float(self.timestamps[-1])
        # The container's rate is exact for a constant rate and a guess for a variable one.
        if n > 1 and abs((n - 1) / span / fps - 1) > 0.01:
            fps = (n - 1) / span
        width, height = self._size[:: -1 if self._turns % 2 else 1]
        self.info = VideoInfo(n, fps, width, height, n / fps)

    def _restart(self) -> None:
        self.close()
        self._begin()

    def _begin(self) -> None:
        self._container, self._stream = self._open()
        self._stream.thread_type = "AUTO"
        self._tick = self._stream.time_base or Fraction(1, 1000)
        self._frames = self._container.decode(self._stream)
        self._position = -1

    def _grab(self) -> bool:
        """Decode the next frame; false at the end of the file. Damaged packets are passed over."""
        for _ in range(_MOST_ERRORS):
            try:
                self._frame = next(self._frames)
                return True
            except (StopIteration, av.EOFError):
                return False
            except MemoryError:
                raise
            except av.FFmpegError:
                self._frames = self._container.decode(self._stream)
        return False

    @property
    def _time(self) -> int | None:
        """Presentation time of the frame decoded last, in ticks."""
        return self._frame.dts if self._frame.pts is None else self._frame.pts

    @functools.cached_property
    def _rate(self) -> Fraction:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or not 0 < rate < 1e6:
            self._fail(f"no usable frame rate ({rate})")
        return rate

    @property
    def _fps(self) -> float:
        return float(self._rate)

    def _check_file(self) -> np.ndarray | None:
        """Return `containers.composition_offsets` of the file; raise if it is not a whole file."""
        if isinstance(self._source, bytes):
            file: BinaryIO = io.BytesIO(self._source)
        else:
            path = Path(self._source)
            if not path.exists():
                self._fail("no such file")
            if not path.is_file():
                self._fail("not a file")
            try:
                file = path.open("rb")
            except OSError as error:
                self._fail(f"cannot be opened: {error.strerror}")
        with file:
            if not file.seek(0, io.SEEK_END):
                self._fail("empty file")
            missing = containers.missing_bytes(file)
            if missing:
                self._fail(f"truncated: {missing} bytes are missing at the end")
            return containers.composition_offsets(file)

    def _indexed_packets(self, offsets: np.ndarray | None) -> Packets | None:
        """Return `_read_packets` by the index of an MP4 or MOV file, None without a full one."""
        if offsets is None or self._time is None:
            return None
        entries = [(entry.timestamp, entry.flags) for entry in self._stream.index_entries]
        times, flags = np.array(entries, np.int64).reshape(-1, 2).T
        hidden = np.any(flags & _DISCARDED)  # by an edit list
        if hidden or not len(times) or len(times) != self._stream.frames:
            return None
        if len(offsets):
            if len(offsets) != len(times):
                return None
            times = times + offsets
        # The file may shift all times against each other, so the first frame says where they begin.
        return times - times.min() + self._time, (flags & _KEY).astype(bool)

    def _read_packets(self) -> Packets:
        """Return times (int64, ticks) and key flags (bool) of all packets, in decoding order."""
        times, is_key = [], []
        container, stream = self._open()
        with container:
            packets = container.demux(stream)
            for _ in range(_MOST_ERRORS):
                try:
                    for packet in packets:
                        time = packet.dts if packet.pts is None else packet.pts
                        if packet.size and not packet.is_discard and time is not None:
                            times.append(time)
                            is_key.append(packet.is_keyframe)
                    break
                except av.FFmpegError:
                    packets = container.demux(stream)
        return np.array(times, np.int64), np.array(is_key, bool)

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        where: Any
        if isinstance(self._source, bytes):
            where = io.BytesIO(self._source)
        else:
            # An absolute path, for "12:30.mp4" would be read as an address.
            where = os.fsdecode(os.path.abspath(self._source))
        try:
            container = av.open(where, container_options=OPEN_OPTIONS, metadata_errors="replace")
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            self._fail(_NO_STREAM)
        pictures = Disposition.attached_pic  # of an audio file
        for stream in container.streams.video:
            if not stream.disposition & pictures and stream.codec_context is not None:
                return container, stream
        container.close()
        self._fail(_NO_STREAM)

    def _fail(self, reason: str) -> NoReturn:
        raise VideoError(self._name, reason)


class _TimesAreWrong(Exception):
    """The decoder returned other frames than the packets promised."""
