"""Frames of a video file in the order in which PyAV (FFmpeg) returns them, seeks, and packets."""

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.stream import Disposition

from tpo_jax.video import containers
from tpo_jax.video.reader import NO_MEMORY, Reader
from tpo_jax.video.timeline import Clock, Timeline

# Options of FFmpeg for every file, which a process may narrow down before it opens one.
OPEN_OPTIONS = {"protocol_whitelist": "file"}
MOST_ERRORS = 1000  # in a row: the rest of the file is unreadable
_KEY, _DISCARDED = 1, 2  # flags of an entry of FFmpeg's index
_NO_STREAM = "no video stream that can be read (not a video, audio only, or damaged)"
# Codecs of cover art, which some files hold as a video stream of one frame.
_PICTURES = ("png", "mjpeg", "bmp", "gif", "webp", "tiff")
# Alternate reference frames of VP8 are packets that show nothing.
_PACKETS_ARE_NOT_FRAMES = ("vp8",)


class _Packets(NamedTuple):
    """All packets of a video in decoding order."""

    times: np.ndarray  # int64 [n], presentation times in ticks
    is_key: np.ndarray  # bool [n]
    indexed: bool  # from an index, not from a walk over the file


def time_of(packet: av.Packet) -> int | None:
    """Return when a packet's frame is shown in ticks, else when it is decoded."""
    return packet.dts if packet.pts is None else packet.pts


class FileReader(Reader):
    """Reads a file, or the bytes of one.

    Raises:
        VideoError: The file is missing, cut off, or has no frame that can be decoded.
    """

    def __init__(self, source: str | os.PathLike | bytes):
        self._source = source
        self.name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._offsets = self._check_file()
        self._begin()
        if not self.grab():
            self.fail(f"no frame can be decoded (codec {self.context.name})")
        self.started = True
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or not 0 < rate < 1e6:
            self.fail(f"no usable frame rate ({rate})")
        tick = self._stream.time_base or Fraction(1, 1000)
        self.clock = Clock(tick, self._stream.start_time or 0, rate)
        self.size = self.frame.width, self.frame.height
        self.turns = round(self.frame.rotation / 90) % 4

    @property
    def context(self) -> av.VideoCodecContext:
        """The decoder."""
        return self._stream.codec_context

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
        for _ in range(MOST_ERRORS):
            try:
                self.frame = next(self._frames)
                return True
            except (StopIteration, av.EOFError):
                return False
            except av.error.MemoryError:
                self.fail(NO_MEMORY)
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

    def timeline(self) -> Timeline | None:
        """Return the frames that the packets promise; None where packets do not tell frames.

        They are those of the index of an MP4 or MOV file, else of a walk over the file. Call it
        when the first frame has been decoded.
        """
        first = self.time
        packets = self._indexed() or self._walked()
        # Packets ahead of the first key frame, as in a cut broadcast, never become frames.
        shown = packets.times >= (first or 0)
        order = np.argsort(packets.times[shown], kind="stable")
        times = packets.times[shown][order]
        keys = np.flatnonzero(packets.is_key[shown][order])
        # Far more packets than frames: the two fields of interlaced frames come in a packet each.
        declared = self._declared()
        plausible = declared <= 0 or len(packets.times) < 1.5 * declared + 16
        told = len(times) and times[0] == first and 0 in keys[:1] and np.all(np.diff(times) > 0)
        if not told or not plausible or self.context.name in _PACKETS_ARE_NOT_FRAMES:
            return None
        spacing = "exact" if packets.indexed else "milliseconds"
        return Timeline(len(times), times, keys, trusted=True, spacing=spacing)

    def walk(self) -> Iterator[av.Packet]:
        """Yield all packets with content in decoding order, skipping what cannot be read."""
        container, stream = self._open()
        with container:
            packets = container.demux(stream)
            for _ in range(MOST_ERRORS):
                try:
                    for packet in packets:
                        if packet.size:
                            yield packet
                    break
                except av.FFmpegError:
                    packets = container.demux(stream)

    def _declared(self) -> float:
        """Return how many frames the container declares: exact, estimated from duration, or 0."""
        duration = (self._stream.duration or 0) * self.clock.tick
        return self._stream.frames or float(duration * self.clock.rate)

    def _indexed(self) -> _Packets | None:
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
        return _Packets(times - times.min() + self.time, (flags & _KEY).astype(bool), True)

    def _walked(self) -> _Packets:
        found = [
            (time, packet.is_keyframe)
            for packet in self.walk()
            if not packet.is_discard and (time := time_of(packet)) is not None
        ]
        times, is_key = np.array(found, np.int64).reshape(-1, 2).T
        return _Packets(times, is_key.astype(bool), False)

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
            broken = containers.broken_at(file)
            if broken is not None:
                self.fail(f"damaged: cannot be read on at byte {broken}, so frames are missing")
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
        except av.error.MemoryError:
            self.fail(NO_MEMORY)
        except (av.FFmpegError, ValueError):
            self.fail(_NO_STREAM)
        sound, pictures = bool(container.streams.audio), 0
        for stream in container.streams.video:
            single = stream.frames == 1 and stream.name in _PICTURES
            if stream.disposition & Disposition.attached_pic or (sound and single):
                pictures += 1
            elif stream.codec_context is not None:
                return container, stream
        others = len(container.streams.video) - pictures
        container.close()
        if sound and not others:
            self.fail(
                "audio only: its picture is a cover" if pictures else "audio only: no picture"
            )
        self.fail(_NO_STREAM)
