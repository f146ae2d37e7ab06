"""Frame-exact video decoding with OpenCV.

OpenCV's frame counter and its seeks rest on the average frame rate, so they are wrong for variable
rates and say nothing of what the file really holds. Here the presentation times of all packets are
read first, without decoding: from the sample tables of an MP4 or MOV file, else by a walk over the
packets (three microseconds each). Sorted, these times are the frames in display order, and they
name every frame that the decoder hands out. So a seek may land anywhere: where it landed is known,
and whether reading on or jumping to a key frame is shorter is known beforehand.

Where packets have no usable times (raw streams, AVI with B-frames, edit lists), or the decoder
contradicts them, frames are counted by reading the file through once.

Colours are those of swscale's bicubic conversion, to the bit. For 8-bit 4:2:0 of even height every
reader agrees, decord among them; for an odd height or ten bits decord and PyAV choose other chroma
filters (PyAV asked for bicubic gives the same pixels as here).
"""

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import cv2
import numpy as np

from tpo_jax.video import containers

Source = str | os.PathLike | bytes  # a file, or the bytes of one

# OpenCV seeks 16 frames ahead of what it is asked for and decodes them; one more for its rounding.
_SEEK_LEAD = 17
# What emptying and refilling the decoder costs, in decoded frames (measured: 12 to 15).
_SEEK_COST = 14
_TOLERANCE_MS = 2e-3  # OpenCV rounds times to microseconds
_LOST = -(10**9)  # the position after a seek that went wrong: far from every key frame
# Alternate reference frames of VP8 are packets that show nothing.
_PACKETS_ARE_NOT_FRAMES = ("VP80",)


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
    """Size, length and rate of a video, rotation applied to width and height.

    Raises `VideoError` for a file that is missing, cut off, or without a frame that can be decoded.
    """
    with opened(source) as video:
        return video.info


def decode(source: Source, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The frames at `indices` (display order, any order, repeats allowed).

    Returns uint8 `[len(indices), height, width, 3]`, RGB, rotation applied. Raises `VideoError`,
    and `IndexError` for an index outside of the video.
    """
    with opened(source) as video:
        return video.select(lambda _: np.asarray(indices, np.int64))[1]


@contextmanager
def opened(source: Source) -> Iterator["Video"]:
    """An open `Video`, from a path or from the bytes of an encoded clip. Raises `VideoError`."""
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
        self._streams: list[io.BytesIO] = []
        track = self._check_file()
        self._capture = self._open()
        readable = self._grab()
        if track and len(track.times) == self._declared and abs(self._time) < _TOLERANCE_MS:
            times, is_key = track.times, track.is_key
        else:
            times, is_key = self._read_packets()
        if not readable:
            codec = _fourcc(self._capture)
            self._fail(f"no frame can be decoded (codec {codec}, {len(times)} packets)")
        # Packets ahead of the first key frame, as in a cut broadcast, never become frames.
        shown = times >= self._time - _TOLERANCE_MS
        order = np.argsort(times[shown])
        self._times, self._keys = times[shown][order], np.flatnonzero(is_key[shown][order])
        self._position = 0  # of the frame grabbed last
        self._trusted = bool(
            not (track and track.edited)
            # Without presentation times (AVI), those of decoding come shifted by the reordering.
            and len(self._times)
            and abs(self._times[0] - self._time) < _TOLERANCE_MS
            and 0 in self._keys[:1]
            and np.all(np.diff(self._times) > 2 * _TOLERANCE_MS)
            # Far more packets than frames: the two fields of interlaced frames come one by one.
            and (self._declared <= 0 or len(times) < 1.5 * self._declared + 16)
            and _fourcc(self._capture) not in _PACKETS_ARE_NOT_FRAMES
        )
        if not self._trusted:
            self._count()
        self._describe()

    def close(self) -> None:
        """Lets go of the file and the decoder."""
        self._capture.release()

    def select(self, choose: Callable[["Video"], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the frames that `choose(self)`, int64 indices, asks for; returns both.

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
                self._retrieve(frames[slot])
            previous = slot
        return frames

    def _retrieve(self, out: np.ndarray) -> None:
        ok, frame = self._capture.retrieve()
        if not ok:
            self._fail(f"frame {self._position} cannot be converted to RGB")
        if frame.shape != out.shape:
            self._fail(f"frame {self._position} is {frame.shape[1]}x{frame.shape[0]} pixels")
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=out)

    def _go_to(self, index: int) -> None:
        """Grabs frame `index`, from a key frame where that is shorter than reading on."""
        for key in self._keys[self._keys + _SEEK_LEAD <= index][:-4:-1]:
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
            if self._trusted and abs(self._time - self._times[self._position]) > _TOLERANCE_MS:
                self._contradicted(f"frame {self._position} is out of order")

    def _seek(self, key: int, index: int) -> bool:
        """Jumps to a key frame; false where OpenCV landed behind `index` or between frames."""
        frame = round(self._times[key] * self._fps / 1000) + _SEEK_LEAD
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, frame)
        self._position = _LOST
        if self._grab():
            found = int(np.searchsorted(self._times, self._time - _TOLERANCE_MS))
            if found <= index and abs(self._times[found] - self._time) < _TOLERANCE_MS:
                self._position = found
        return self._position != _LOST

    def _contradicted(self, reason: str) -> None:
        if self._trusted:
            raise _TimesAreWrong
        self._fail(reason)

    def _count(self) -> None:
        """Takes the frames as the decoder hands them out, from the first to the last."""
        self._trusted, self._keys = False, np.zeros(0, np.int64)
        self._restart()
        times = []
        while self._grab():
            times.append(self._time)
        self._times = np.array(times)
        if not np.all(np.diff(self._times) > 0):
            self._times = np.arange(len(times)) * 1000 / self._fps
        self._restart()

    def _describe(self) -> None:
        self.timestamps = (self._times - self._times[0]) / 1000
        n, fps, span = len(self._times), self._fps, float(self.timestamps[-1])
        # The container's rate is exact for a constant rate and a guess for a variable one.
        if n > 1 and abs((n - 1) / span / fps - 1) > 0.01:
            fps = (n - 1) / span
        width = round(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = round(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.info = VideoInfo(n, fps, width, height, n / fps)

    def _restart(self) -> None:
        self._capture.release()
        self._capture = self._open()
        self._position = -1

    def _grab(self) -> bool:
        return self._capture.grab()

    @property
    def _time(self) -> float:
        """Presentation time of the grabbed frame in milliseconds."""
        return self._capture.get(cv2.CAP_PROP_POS_MSEC)

    @property
    def _declared(self) -> float:
        """Frames by the container's word: exact, estimated from its length, or nonsense."""
        return self._capture.get(cv2.CAP_PROP_FRAME_COUNT)

    @functools.cached_property
    def _fps(self) -> float:
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        if not 0 < fps < 1e6:
            self._fail(f"no usable frame rate ({fps})")
        return fps

    def _check_file(self) -> containers.Track | None:
        """The frames by an ISO file's tables; raises for what is no whole file."""
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
            return containers.video_track(file)

    def _read_packets(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (float64, ms) and key flags (bool) of all packets, in the order of decoding."""
        packets = self._open(cv2.CAP_PROP_FORMAT, -1)
        grab, get = packets.grab, packets.get
        times, is_key = [], []
        while grab():
            times.append(get(cv2.CAP_PROP_POS_MSEC))
            is_key.append(get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME))
        packets.release()
        return np.array(times, np.float64), np.array(is_key, bool)

    def _open(self, *parameters: int) -> cv2.VideoCapture:
        _settle_opencv()
        where: Any
        if isinstance(self._source, bytes):
            where = io.BytesIO(self._source)
            self._streams.append(where)  # OpenCV reads from it without holding on to it
        else:
            # An absolute path, for "12:30.mp4" would be read as an address.
            where = os.fsdecode(os.path.abspath(self._source))
        capture = cv2.VideoCapture(where, cv2.CAP_FFMPEG, list(parameters))
        if not capture.isOpened():
            self._fail("no video stream that can be read (not a video, audio only, or damaged)")
        return capture

    def _fail(self, reason: str) -> NoReturn:
        raise VideoError(self._name, reason)


class _TimesAreWrong(Exception):
    """The decoder handed out other frames than the packets promised."""


def _fourcc(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    return code.to_bytes(4, "little").decode("latin-1")


@functools.cache
def _settle_opencv() -> None:
    """Process-wide, and before the first file: what is wrong is in our errors, not on stderr, and
    long stretches of audio between two frames are no end of the file.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_FFMPEG_READ_ATTEMPTS", str(10**7))
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
