"""Frames of a video file in the order in which PyAV (FFmpeg) returns them, seeks, and packets.

Colours are those of swscale's bicubic conversion to BGR, bit for bit, as OpenCV has them. For 8-bit
4:2:0 of even height decord agrees; for an odd height or ten bits it uses other chroma filters.
"""

import functools
import io
import os
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

# Options of FFmpeg for every file, which a process may narrow down before it opens one.
OPEN_OPTIONS = {"protocol_whitelist": "file"}
_MOST_ERRORS = 1000  # in a row: the rest of the file is unreadable
_KEY, _DISCARDED = 1, 2  # flags of an entry of FFmpeg's index
_NO_STREAM = "no video stream that can be read (not a video, audio only, or damaged)"


class VideoError(ValueError):
    """A video that cannot be read: which, and why, in one line."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Packets(NamedTuple):
    """All packets of a video in decoding order."""

    times: np.ndarray  # int64 [n], presentation times in ticks
    is_key: np.ndarray  # bool [n]
    indexed: bool  # from an index, not from a walk over the file


class Reader:
    """Decodes a video from its start, or from where a seek lands; `frame` is the last one decoded.

    Attributes:
        tick: Seconds of a unit of time in the file.
        size: Width and height of the first frame, before rotation.
        turns: Quarters by which frames are rotated, counterclockwise.

    Raises:
        VideoError: The file is missing, cut off, or has no frame that can be decoded.
    """

    frame: av.VideoFrame

    def __init__(self, source: Source):
        self._source = source
        self.name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._offsets = self._check_file()
        self._reformatter = VideoReformatter()
        self._begin()
        if not self.grab():
            self.fail(f"no frame can be decoded (codec {self.codec})")
        self.tick = self._stream.time_base or Fraction(1, 1000)
        self.size = self.frame.width, self.frame.height
        self.turns = round(self.frame.rotation / 90) % 4

    def close(self) -> None:
        """Close the file and the decoder."""
        self._container.close()

    def restart(self) -> None:
        """Go back to before the first frame."""
        self.close()
        self._begin()

    def _begin(self) -> None:
        self._container, self._stream = self._open()
        self._stream.thread_type = "AUTO"
        self._frames = self._container.decode(self._stream)

    def grab(self) -> bool:
        """Decode the next frame; false at the end of the file. Damaged packets are skipped."""
        for _ in range(_MOST_ERRORS):
            try:
                self.frame = next(self._frames)
                return True
            except (StopIteration, av.EOFError):
                return False
            except MemoryError:
                raise
            except av.FFmpegError:
                self._frames = self._container.decode(self._stream)
        return False

    def seek(self, time: int) -> bool:
        """Decode a frame at or before a time in ticks, from a key frame; false if that fails."""
        try:
            self._container.seek(time, stream=self._stream)
        except av.FFmpegError:
            return False
        self._frames = self._container.decode(self._stream)
        return self.grab()

    @property
    def time(self) -> int | None:
        """Presentation time of the frame in ticks, else that of decoding."""
        return self.frame.dts if self.frame.pts is None else self.frame.pts

    @property
    def codec(self) -> str:
        """Name of the decoder."""
        return self._stream.codec_context.name

    @functools.cached_property
    def rate(self) -> Fraction:
        """Frames per second by the container's word."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or not 0 < rate < 1e6:
            self.fail(f"no usable frame rate ({rate})")
        return rate

    @property
    def declared(self) -> float:
        """Frames by the container's word: exact, estimated from its length, or 0."""
        duration = (self._stream.duration or 0) * self.tick
        return self._stream.frames or float(duration * self.rate)

    def seconds(self, times: np.ndarray) -> np.ndarray:
        """Return times in ticks as seconds from the first of them, float64.

        Their rounding is part of the time stamps in every shard.
        """
        milliseconds = (times - (self._stream.start_time or 0)) * float(self.tick) * 1000
        return (milliseconds - milliseconds[0]) / 1000

    def convert(self, out: np.ndarray) -> bool:
        """Write the frame as RGB, rotated, to uint8 `[height, width, 3]`; false if that fails."""
        try:
            # The order of the channels matters to the rounding of swscale.
            picture = self._reformatter.reformat(
                self._progressive(), format="bgr24", interpolation="BICUBIC"
            )
        except (av.FFmpegError, ValueError):
            return False
        plane = picture.planes[0]
        pixels = np.lib.stride_tricks.as_strided(
            np.frombuffer(memoryview(plane), np.uint8),
            (picture.height, picture.width, 3),
            (plane.line_size, 3, 1),
        )
        if self.turns:
            out[...] = np.rot90(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), self.turns)
        else:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=out)
        return True

    def _progressive(self) -> av.VideoFrame:
        """Return the frame marked as progressive: swscale does not convert interlaced ones."""
        if not self.frame.interlaced_frame:
            return self.frame
        self._graph.vpush(self.frame)
        return self._graph.vpull()

    @functools.cached_property
    def _graph(self) -> av.filter.Graph:
        graph = av.filter.Graph()
        source, sink = graph.add_buffer(template=self._stream), graph.add("buffersink")
        graph.link_nodes(source, graph.add("setfield", "prog"), sink).configure()
        return graph

    def packets(self) -> Packets:
        """Return the packets by the index of an MP4 or MOV file, else by a walk over the file.

        Call it when the first frame has been decoded.
        """
        return self._indexed() or self._walked()

    def _indexed(self) -> Packets | None:
        if self._offsets is None or self.time is None:
            return None
        entries = [(entry.timestamp, entry.flags) for entry in self._stream.index_entries]
        times, flags = np.array(entries, np.int64).reshape(-1, 2).T
        hidden = np.any(flags & _DISCARDED)  # by an edit list
        if hidden or not len(times) or len(times) != self._stream.frames:
            return None
        if len(self._offsets):
            if len(self._offsets) != len(times):
                return None
            times = times + self._offsets
        # The file may shift all times together, so the first frame says where they begin.
        return Packets(times - times.min() + self.time, (flags & _KEY).astype(bool), True)

    def _walked(self) -> Packets:
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
        return Packets(np.array(times, np.int64), np.array(is_key, bool), False)

    def _check_file(self) -> np.ndarray | None:
        """Return `containers.composition_offsets` of the file; raise if it is not a whole file."""
        if isinstance(self._source, bytes):
            file: BinaryIO = io.BytesIO(self._source)
        else:
            path = Path(self._source)
            if not path.exists():
                self.fail("no such file")
            if not path.is_file():
                self.fail("not a file")
            try:
                file = path.open("rb")
            except OSError as error:
                self.fail(f"cannot be opened: {error.strerror}")
        with file:
            if not file.seek(0, io.SEEK_END):
                self.fail("empty file")
            missing = containers.missing_bytes(file)
            if missing:
                self.fail(f"truncated: {missing} bytes are missing at the end")
            return containers.composition_offsets(file)

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
            self.fail(_NO_STREAM)
        for stream in container.streams.video:
            cover = stream.disposition & Disposition.attached_pic  # of an audio file
            if not cover and stream.codec_context is not None:
                return container, stream
        container.close()
        self.fail(_NO_STREAM)

    def fail(self, reason: str) -> NoReturn:
        """Raise a `VideoError` about this file."""
        raise VideoError(self.name, reason)
