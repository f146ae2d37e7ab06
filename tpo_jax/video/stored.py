"""Frames of a video that was taken apart: only the parts that they need are read."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator

import av
import numpy as np

from tpo_jax.video.files import MOST_ERRORS
from tpo_jax.video.packets import HIDDEN, Header, Part, StoredVideo, make_decoder, make_packet
from tpo_jax.video.reader import NO_MEMORY, Reader
from tpo_jax.video.timeline import Timeline

WINDOW = 16 << 20  # bytes of packets in memory; more only if one part exceeds a reader's share
_DECODERS = 8  # of a video, each with a few pictures in memory


class StoredReader(Reader):
    """Reads a `StoredVideo` as `FileReader` reads the file it was made of.

    Where the last frame wanted of a stretch is known, the decoder is flushed after its packet, so
    that no later part is read because of the decoder's delay. An exception is a decoder that
    reorders frames whose times are in decoding order, as in an AVI, where FFmpeg makes them up:
    only later packets show which frame comes next.
    """

    started = False  # every stretch of frames begins with a seek
    decoders = _DECODERS

    def __init__(self, video: StoredVideo, count: int = 1):
        """Begin before the first frame, as one of `count` readers that work concurrently."""
        self._video, self._window = video, WINDOW // count
        self.name, self._header, self._read = video.name, video.header, video.read
        self.clock, self.size, self.turns = video.header[3:6]
        self._starts: list[int] = self._header.starts.tolist()
        self._parts: dict[int, Part] = {}
        self._wanted: deque[int] = deque()  # parts that are not read yet, ascending
        self._ends: dict[int, int] = {}  # last packet wanted of a stretch, by its first one
        self._in_order = bool(np.all(np.diff(self._header.packet_of) > 0))
        self.restart()

    def timeline(self) -> Timeline:
        """Return the frames as they were when the video was taken apart."""
        return self._header.timeline

    def close(self) -> None:
        """Release the decoder and the packets."""
        self._parts.clear()
        del self._decoder

    def beside(self, count: int) -> Reader:
        """Return one of `count` readers, which together hold no more packets than one."""
        return StoredReader(self._video, count)

    def taken_apart(self) -> Iterator[Part | Header]:
        """Yield the parts of the video, then its header, as `dissect` made them."""
        for number in range(len(self._header.starts)):
            yield from self._read([number])
        yield self._header

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Note what will be decoded, so that its parts can be read together."""
        header = self._header
        if not len(header.packet_of):
            return
        # Frames shown earlier may be stored after later ones.
        last = np.maximum.accumulate(header.packet_of)
        self._ends = {int(header.packet_of[a]): int(last[b]) for a, b in spans}
        parts: set[int] = set()
        for start, end in self._ends.items():
            parts.update(range(self._part_of(start), self._part_of(end) + 1))
        self._wanted = deque(sorted(parts))

    def restart(self) -> None:
        """Go back to before the first frame, with a new decoder."""
        self._decoder = make_decoder(self._header)
        self._begin(0, self._header.num_packets - 1)

    def seek(self, time: int) -> bool:
        """Decode a frame at or before a time in ticks, from a key frame; false if that fails."""
        timeline = self._header.timeline
        keys = timeline.keys[timeline.times[timeline.keys] <= time]
        if not len(keys):
            return False
        if self._decoder.is_open:
            self._decoder.flush_buffers()
        packet = int(self._header.packet_of[keys[-1]])
        self._begin(packet, self._ends.get(packet, self._header.num_packets - 1))
        return self.grab()

    def _begin(self, packet: int, end: int) -> None:
        self._next, self._end, self._emptied = packet, end, False
        self._ready: deque[av.VideoFrame] = deque()
        self._hidden: set[int] = set()

    def grab(self) -> bool:
        """Decode the next frame; false at the end of what is expected. Damage is skipped."""
        errors = 0
        while not self._ready:
            if self._emptied or errors == MOST_ERRORS:
                return False
            try:
                frames = self._decode()
            except av.EOFError:
                return False
            except av.error.MemoryError:
                self.fail(NO_MEMORY)
            except av.FFmpegError:
                errors += 1
            else:
                self._ready.extend(f for f in frames if f.pts not in self._hidden)
        self.frame = self._ready.popleft()
        return True

    def _decode(self) -> list[av.VideoFrame]:
        """Decode the next packet, or what is left in the decoder."""
        reordered = self._in_order and self._decoder.reorder_depth > 0
        if self._next > (self._header.num_packets - 1 if reordered else self._end):
            self._emptied = True
            return self._decoder.decode(None)
        index = self._part_of(self._next)
        part, number = self._part(index), self._next - self._starts[index]
        self._next += 1
        packet = make_packet(part, number, self.clock.tick)
        if part.rows[number][3] & HIDDEN:
            self._hidden.add(part.rows[number][0])
        return self._decoder.decode(packet)

    def _part_of(self, packet: int) -> int:
        return bisect_right(self._starts, packet) - 1

    def _part(self, index: int) -> Part:
        if index not in self._parts:
            while self._wanted and self._wanted[0] <= index:
                self._wanted.popleft()
            numbers, size = [index], int(self._header.sizes[index])
            while self._wanted:
                size += int(self._header.sizes[self._wanted[0]])
                if size > self._window:
                    break
                numbers.append(self._wanted.popleft())
            self._parts = {}  # frees the previous window, so that two are never in memory
            self._parts = dict(zip(numbers, self._read(numbers), strict=True))
        return self._parts[index]
