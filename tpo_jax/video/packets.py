"""A video taken apart: its encoded packets, untouched, in parts, and a header that says which parts
any frame needs.
"""

import base64
import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from tpo_jax.video.reader import VideoError
from tpo_jax.video.timeline import Clock, Timeline

KEY, CORRUPT, HIDDEN = 1, 2, 4  # flags of a packet; hidden: decoded but not shown, by an edit list
NO_TIME = np.iinfo(np.int64).min
# Attributes of a decoder that a container sets.
NUMBERS = (
    *("width", "height", "bits_per_coded_sample", "reorder_depth", "field_order"),
    *("color_range", "color_primaries", "color_trc", "colorspace"),
)
TEXTS, FRACTIONS = ("codec_tag", "pix_fmt"), ("framerate", "sample_aspect_ratio")


class Part(NamedTuple):
    """Consecutive packets of a video."""

    rows: list[tuple[int, int, int, int]]  # pts, dts (ticks, or `NO_TIME`), duration, flags
    side: list[tuple[int, str, bytes]]  # side data: number of the packet, kind, content
    packets: list[bytes]

    def encode(self) -> tuple[str, tuple[bytes, ...]]:
        """Return the part as a text and the contents of its packets after their packed rows."""
        side = [(number, kind, base64.b64encode(data).decode()) for number, kind, data in self.side]
        return json.dumps(side), (pack(np.array(self.rows, np.int64).T), *self.packets)

    @classmethod
    def decode(cls, text: str, items: Sequence[bytes]) -> "Part":
        """Parse what `encode` returned; raise `ValueError` for anything else."""
        if not items:
            raise ValueError("no packets")
        side = [(number, kind, base64.b64decode(data)) for number, kind, data in json.loads(text)]
        part = cls(unpack(items[0], 4).T.tolist(), side, list(items[1:]))
        if len(part.rows) != len(part.packets):
            raise ValueError("packets and their table differ in number")
        return part


class Header(NamedTuple):
    """What is known of a video without its packets."""

    codec: str  # name of the decoder
    parameters: dict[str, Any]  # attributes of the decoder
    extradata: bytes
    clock: Clock
    size: tuple[int, int]  # width and height before rotation
    turns: int  # quarter turns, counterclockwise
    timeline: Timeline
    packet_of: np.ndarray  # int64: which packet holds each frame; empty for frames that are counted
    starts: np.ndarray  # int64 [parts]: the first packet of each part
    sizes: np.ndarray  # int64 [parts]: bytes of the packets of each part
    num_packets: int
    digest: str  # hash of the packets, of what the decoder must know before them, turns and times

    def encode(self) -> tuple[str, tuple[bytes, ...]]:
        """Return the header as a text and packed arrays."""
        clock, timeline = self.clock, self.timeline
        facts = {
            "codec": self.codec,
            "parameters": self.parameters,
            "tick": str(clock.tick),
            "start": clock.start,
            "rate": str(clock.rate),
            "size": self.size,
            "turns": self.turns,
            "num_frames": timeline.num_frames,
            "trusted": timeline.trusted,
            "spacing": timeline.spacing,
            "num_packets": self.num_packets,
            "digest": self.digest,
        }
        arrays = (timeline.times, timeline.keys, self.packet_of, self.starts, self.sizes)
        return json.dumps(facts), (self.extradata, *(pack(array) for array in arrays))

    @classmethod
    def decode(cls, text: str, items: Sequence[bytes]) -> "Header":
        """Parse what `encode` returned; raise `ValueError` for anything else."""
        try:
            facts = json.loads(text)
            extradata, *packed = items
            times, keys, packet_of, starts, sizes = (unpack(data, 1)[0] for data in packed)
            clock = Clock(Fraction(facts["tick"]), facts["start"], Fraction(facts["rate"]))
            timeline = Timeline(
                facts["num_frames"], times, keys, facts["trusted"], facts["spacing"]
            )
            return cls(
                codec=facts["codec"],
                parameters=facts["parameters"],
                extradata=extradata,
                clock=clock,
                size=tuple(facts["size"]),
                turns=facts["turns"],
                timeline=timeline,
                packet_of=packet_of,
                starts=starts,
                sizes=sizes,
                num_packets=facts["num_packets"],
                digest=facts["digest"],
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"not a header of a video: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class StoredVideo:
    """A video that was taken apart.

    Args:
        name: Of the video, for messages.
        header: Its header.
        read: Returns the parts with these numbers, in this order; raises `VideoError`.
    """

    name: str
    header: Header
    read: Callable[[Sequence[int]], list[Part]]


def make_decoder(header: Header) -> av.VideoCodecContext:
    """Return a decoder with the parameters that the container of a video gave.

    Raises:
        VideoError: FFmpeg here has no such decoder, or it takes no such parameter.
    """
    try:
        context: Any = av.CodecContext.create(header.codec, "r")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(header.codec, "FFmpeg has no decoder of this name here") from error
    for name, value in header.parameters.items():
        try:
            setattr(context, name, Fraction(value) if name in FRACTIONS else value)
        except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
            raise VideoError(header.codec, f"damaged: {name}={value!r} in its header") from error
    context.extradata = header.extradata or None
    # FFmpeg's threads share the frames of a group and take 1.3 times the CPU time of one; readers
    # share groups instead.
    context.thread_count = 1
    return context


def make_packet(part: Part, number: int, tick: Fraction) -> av.Packet:
    """Return a packet of a part as the file had it."""
    # A copy: to free the bytes themselves, a decoder thread would need the interpreter lock.
    packet = av.Packet(len(part.packets[number]))
    packet.update(part.packets[number])
    pts, dts, duration, flags = part.rows[number]
    packet.pts, packet.dts = (None if time == NO_TIME else time for time in (pts, dts))
    packet.duration, packet.time_base = duration, tick
    packet.is_keyframe, packet.is_corrupt = bool(flags & KEY), bool(flags & CORRUPT)
    for _, kind, data in (entry for entry in part.side if entry[0] == number):
        add_side_data(packet, kind, data)
    return packet


def add_side_data(packet: av.Packet, kind: str, data: bytes) -> None:
    """Give a packet side data of a kind that PyAV names."""
    module: Any = av.packet  # its stub leaves the constructor out
    side = module.PacketSideData(module.packet_sidedata_type_from_literal(kind), len(data))
    side.update(data)
    packet.set_sidedata(side)


def pack(values: np.ndarray) -> bytes:
    """Compress int64 `[n]` or `[k, n]` as differences of neighbours, which are small."""
    return zlib.compress(np.diff(values, axis=-1, prepend=0).astype("<i8").tobytes())


def unpack(data: bytes, rows: int) -> np.ndarray:
    """Return what `pack` compressed, int64 `[rows, n]`; `ValueError` if it is damaged."""
    try:
        differences = np.frombuffer(zlib.decompress(data), "<i8").reshape(rows, -1)
    except zlib.error as error:
        raise ValueError(f"a damaged table: {error}") from error
    return np.cumsum(differences, axis=-1, dtype=np.int64)
