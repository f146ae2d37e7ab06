"""Takes a video file apart in one pass, without decoding.

A part ends before any packet with which it would have more than `MEDIUM` bytes. It holds several
groups of pictures only if all but the last of them have less than `SMALL` bytes together, and ends
where a group that began in an earlier part does. So reading a frame takes little more than its
group of pictures up to it.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from tpo_jax.video.decode import Video
from tpo_jax.video.files import FileReader, time_of
from tpo_jax.video.packets import (
    CORRUPT,
    FRACTIONS,
    HIDDEN,
    KEY,
    NO_TIME,
    NUMBERS,
    TEXTS,
    Header,
    Part,
)
from tpo_jax.video.stored import StoredReader
from tpo_jax.video.timeline import Timeline

SMALL, MEDIUM = 256 << 10, 512 << 10  # bytes of a part, more only if one packet has more
LARGE = 64 << 20  # most bytes of a packet, and of any record
# What a container, not the stream, may tell a decoder about a packet and all that follow.
_SIDE_DATA = ("palette", "new_extradata", "param_change")


def dissect(video: Video) -> Iterator[Part | Header]:
    """Yield the parts of a video, then its header; those of a stored video as they are.

    Where the packets contradict the frames that `video` promises, frames are counted by decoding.

    Raises:
        VideoError: A packet holds more than `LARGE` bytes.
    """
    if isinstance(video.reader, StoredReader):
        yield from video.reader.taken_apart()
        return
    assert isinstance(video.reader, FileReader)
    dissection = _Dissection(video.reader)
    yield from dissection.parts()
    packet_of = dissection.packet_of(video.timeline)
    if packet_of is None:
        video.count()
        packet_of = np.zeros(0, np.int64)
    yield dissection.header(video.timeline, packet_of)


class _Dissection:
    """What is known of the packets that were read."""

    def __init__(self, reader: FileReader):
        self._reader = reader
        self._parameters = _parameters(reader.context)
        self._extradata = reader.context.extradata or b""
        self._times, self._flags = array("q"), array("b")  # of all packets
        self._starts, self._sizes = array("q"), array("q")  # of all parts
        facts = [reader.context.name, self._parameters, self._extradata.hex()]
        self._hash = hashlib.sha256(json.dumps(facts).encode())

    def parts(self) -> Iterator[Part]:
        """Yield the packets of the file in parts."""
        part, size, divided = Part([], [], []), 0, False
        lasting: dict[str, bytes] = {}
        for packet in self._reader.walk():
            if packet.size > LARGE:
                reason = f"a packet of {packet.size} bytes; a part of a stored video holds {LARGE}"
                self._reader.fail(reason)
            full = size + packet.size > MEDIUM
            if part.packets and (full or (packet.is_keyframe and (size >= SMALL or divided))):
                yield self._finished(part, size)
                part, size, divided = Part([], [], []), 0, not packet.is_keyframe
            told = {s.data_type: bytes(s) for s in packet.iter_sidedata()}
            changed = {kind: told[kind] for kind in _SIDE_DATA if kind in told}
            lasting |= changed
            # Decoding may begin at any key frame.
            for kind, data in (lasting if packet.is_keyframe else changed).items():
                part.side.append((len(part.packets), kind, data))
            part.rows.append(self._row(packet))
            part.packets.append(bytes(packet))
            self._hash.update(part.packets[-1])
            size += packet.size
        if part.packets:
            yield self._finished(part, size)

    def _row(self, packet: av.Packet) -> tuple[int, int, int, int]:
        flags = KEY * packet.is_keyframe | CORRUPT * packet.is_corrupt | HIDDEN * packet.is_discard
        time = time_of(packet)
        self._times.append(NO_TIME if time is None else time)
        self._flags.append(flags)
        pts, dts = (NO_TIME if time is None else time for time in (packet.pts, packet.dts))
        return pts, dts, packet.duration or 0, flags

    def _finished(self, part: Part, size: int) -> Part:
        self._starts.append(len(self._times) - len(part.packets))
        self._sizes.append(size)
        return part

    def packet_of(self, timeline: Timeline) -> np.ndarray | None:
        """Return which packet holds each frame, int64, empty if the frames are counted; None if the
        packets contradict the timeline.
        """
        if not timeline.trusted:
            return np.zeros(0, np.int64)
        times, flags = (np.array(values, np.int64) for values in (self._times, self._flags))
        shown = np.flatnonzero((times >= timeline.times[0]) & (flags & HIDDEN == 0))
        packet_of = shown[np.argsort(times[shown], kind="stable")]
        same = np.array_equal(times[packet_of], timeline.times) and np.array_equal(
            np.flatnonzero(flags[packet_of] & KEY), timeline.keys
        )
        return packet_of if same else None

    def header(self, timeline: Timeline, packet_of: np.ndarray) -> Header:
        """Return the header of the parts."""
        reader = self._reader
        # Files with the same packets may show them turned, or at other times.
        self._hash.update(json.dumps([reader.turns, *map(str, reader.clock)]).encode())
        self._hash.update(timeline.times.astype("<i8").tobytes())
        return Header(
            codec=reader.context.name,
            parameters=self._parameters,
            extradata=self._extradata,
            clock=reader.clock,
            size=reader.size,
            turns=reader.turns,
            timeline=timeline,
            packet_of=packet_of,
            starts=np.array(self._starts, np.int64),
            sizes=np.array(self._sizes, np.int64),
            num_packets=len(self._times),
            digest=self._hash.hexdigest(),
        )


def _parameters(context: av.VideoCodecContext) -> dict[str, Any]:
    numbers = {name: int(getattr(context, name)) for name in NUMBERS}
    values = {name: getattr(context, name) for name in (*TEXTS, *FRACTIONS)}
    return numbers | {name: str(value) for name, value in values.items() if value is not None}
