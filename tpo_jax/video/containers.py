"""What a video file says about itself that OpenCV does not pass on: is it cut off, was it edited,
and when are its frames shown.

Only headers and small tables are read, never pictures.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

_UNKNOWN_SIZE = -1
# What a damaged file may make us read and hold at most: bytes of a table, frames of a video.
_LARGEST_TABLE, _MOST_FRAMES = 1 << 26, 1 << 24
_ISO_TOP_LEVEL = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp")


def missing_bytes(file: BinaryIO) -> int:
    """Bytes that an ISO (MP4, MOV), RIFF (AVI) or EBML (Matroska, WebM) file promises and lacks.

    Other containers have no such promise and always give 0.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if head[4:8] in _ISO_TOP_LEVEL:
        end = max((end for _, _, end in _boxes(file, 0, size)), default=size)
    elif head[:4] == b"RIFF":
        end = 8 + struct.unpack("<I", head[4:8])[0]
    elif head[:4] == b"\x1aE\xdf\xa3":
        end = _segment_end(head)
    else:
        end = size
    return max(0, end - size)


class Track(NamedTuple):
    """The video track of an ISO file; both arrays are empty where its frames are in fragments."""

    times: np.ndarray  # float64 [n], ms from the first frame, in the order of decoding
    is_key: np.ndarray  # bool [n]
    edited: bool  # an edit list hides or rearranges frames


def video_track(file: BinaryIO) -> Track | None:
    """The first video track of an ISO file (MP4, MOV), `None` for other files.

    Trimming a clip in a phone's gallery makes it `edited`: hidden frames are still in the file and
    are decoded, but never shown. The short start offset of files with B-frames does not count.
    """
    size = file.seek(0, io.SEEK_END)
    movie = _find(file, (0, size), b"moov")
    if movie is None:
        return None
    for name, start, end in _boxes(file, *movie):
        handler = _find(file, (start, end), b"mdia", b"hdlr") if name == b"trak" else None
        if handler is not None:
            file.seek(handler[0] + 8)
            if file.read(4) == b"vide":
                return _track(file, movie, (start, end))
    return None


def _track(file: BinaryIO, movie: tuple[int, int], track: tuple[int, int]) -> Track:
    def table(name: bytes, *layouts: str) -> np.ndarray:
        return _table(file, _find(file, track, b"mdia", b"minf", b"stbl", name), *layouts)

    steps = _run_lengths(table(b"stts", ">u4,>u4"))
    delays = _run_lengths(table(b"ctts", ">u4,>u4", ">u4,>i4"))
    fragments = _find(file, movie, b"mvex") is not None
    if fragments or not len(steps) or len(delays) not in (0, len(steps)):
        return Track(np.zeros(0), np.zeros(0, bool), edited=False)
    first_delay = int(delays[0]) if len(delays) else 0
    length = int(steps.sum())
    shown = np.cumsum(steps) - steps + (delays if len(delays) else 0)
    keys = _find(file, track, b"mdia", b"minf", b"stbl", b"stss")
    is_key = np.full(len(shown), keys is None)
    numbers = _table(file, keys, ">u4")["f0"].astype(np.int64)
    is_key[numbers[(numbers > 0) & (numbers <= len(shown))] - 1] = True
    ticks = _timescale(file, _find(file, track, b"mdia", b"mdhd")) or 1

    edits = _table(file, _find(file, track, b"edts", b"elst"), ">u4,>i4,>u4", ">u8,>i8,>u4")
    edits = edits[edits["f1"] >= 0]  # the others delay the start
    edited = len(edits) > 1
    if len(edits) == 1:
        shown_length, start = int(edits["f0"][0]), int(edits["f1"][0])
        movie_ticks = _timescale(file, _find(file, movie, b"mvhd"))
        # Length 0 means "to the end"; a tick of the movie's clock is lost to rounding.
        missing = (first_delay + length - start) * movie_ticks - (shown_length + 1.5) * ticks
        edited = start > first_delay or (shown_length > 0 and missing > 0)
    return Track((shown - shown.min()) / ticks * 1000, is_key, edited)


def _run_lengths(table: np.ndarray) -> np.ndarray:
    """int64 values of a table of (count, value), none if they are too many to be true."""
    counts = table["f0"].astype(np.int64)
    return np.repeat(table["f1"].astype(np.int64), counts if counts.sum() <= _MOST_FRAMES else 0)


def _table(file: BinaryIO, box: tuple[int, int] | None, *layouts: str) -> np.ndarray:
    """Entries of a counted table, fields `f0`, `f1`, … whose layout goes by the box's version."""
    data = b""
    if box is not None:
        file.seek(box[0])
        data = file.read(min(box[1] - box[0], _LARGEST_TABLE))
    version, count = struct.unpack_from(">B3xI", data) if len(data) >= 8 else (0, 0)
    kinds = layouts[min(version, len(layouts) - 1)].split(",")
    layout = np.dtype([(f"f{i}", kind) for i, kind in enumerate(kinds)])
    count = min(count, max(0, len(data) - 8) // layout.itemsize)
    return np.frombuffer(data[8 : 8 + count * layout.itemsize], layout)


def _timescale(file: BinaryIO, box: tuple[int, int] | None) -> int:
    """Ticks per second of an `mvhd` or `mdhd` box."""
    if box is None:
        return 0
    file.seek(box[0])
    data = file.read(24)
    at = 20 if data[:1] == b"\x01" else 12
    return int.from_bytes(data[at : at + 4], "big")


def _find(file: BinaryIO, span: tuple[int, int], *names: bytes) -> tuple[int, int] | None:
    for name in names:
        found = [(start, end) for box, start, end in _boxes(file, *span) if box == name]
        if not found:
            return None
        span = found[0]
    return span


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the content and promised end of every ISO box in `[start, end)`."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(8)
        if len(header) < 8:
            return
        length, name = struct.unpack(">I4s", header)
        content = start + 8
        if length == 1:
            wide = file.read(8)
            length = struct.unpack(">Q", wide)[0] if len(wide) == 8 else 0
            content += 8
        elif length == 0:  # to the end of the file
            length = end - start
        if length < content - start:
            return
        yield name, content, start + length
        start += length


def _segment_end(head: bytes) -> int:
    """Where the Matroska segment says it ends; 0 where it does not say."""
    _, position = _ebml_number(head, 4)
    header_length, _ = _ebml_number(head, 4)
    position += header_length
    if head[position : position + 4] != b"\x18S\x80g":
        return 0
    length, content = _ebml_number(head, position + 4)
    return 0 if length == _UNKNOWN_SIZE else content + length


def _ebml_number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length EBML size and the position behind it."""
    if at >= len(data) or not data[at]:
        return _UNKNOWN_SIZE, at + 1
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (_UNKNOWN_SIZE if value == (1 << 7 * width) - 1 else value), at + width
