"""What a video file says about itself that FFmpeg does not pass on: whether it is cut off, and when
the frames of an MP4 are shown, which FFmpeg tells only packet by packet.

Only headers and small tables are read, never pictures.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

_UNKNOWN_SIZE = -1
# Limits for damaged files: bytes of a table, frames of a video.
_LARGEST_TABLE, _MOST_FRAMES = 1 << 26, 1 << 24
_ISO_TOP_LEVEL = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp")

# IDs of Matroska elements: of a cluster, of all in a segment, of all in a cluster.
_CLUSTER = b"\x1f\x43\xb6\x75"
_IN_BOTH = (b"\xec", b"\xbf")  # unused space, checksum
_IN_SEGMENT = (
    *(*_IN_BOTH, _CLUSTER, b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b"),
    *(b"\x1c\x53\xbb\x6b", b"\x19\x41\xa4\x69", b"\x10\x43\xa7\x70", b"\x12\x54\xc3\x67"),
)
_IN_CLUSTER = (*_IN_BOTH, b"\xe7", b"\xa7", b"\xab", b"\xa3", b"\xa0", b"\xaf", b"\x58\x54")


def missing_bytes(file: BinaryIO) -> int:
    """Return how many bytes an ISO (MP4, MOV), RIFF (AVI) or EBML (Matroska, WebM) file lacks.

    These state their length; other containers do not, and always give 0.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if head[4:8] in _ISO_TOP_LEVEL:
        end = max((end for _, _, end in _boxes(file, 0, size)), default=size)
    elif head[:4] == b"RIFF" and len(head) >= 8:
        end = 8 + struct.unpack("<I", head[4:8])[0]
    elif head[:4] == b"\x1aE\xdf\xa3":
        end = _segment(head)[1]
    else:
        end = size
    return max(0, end - size)


def broken_at(file: BinaryIO) -> int | None:
    """Return the byte at which the elements of a Matroska or WebM file break off, or None.

    FFmpeg skips the rest of the cluster there, and its frames are missing. Only the headers of
    elements are read: what a block holds may still be damaged. Other containers, and
    recordings that do not know their length, give None.

    Source: https://www.rfc-editor.org/rfc/rfc9559 (Matroska), section 5.
    """
    file.seek(0)
    head = file.read(64)
    if head[:4] != b"\x1aE\xdf\xa3":
        return None
    return _break(file, *_segment(head), _IN_SEGMENT)


def composition_offsets(file: BinaryIO) -> np.ndarray | None:
    """Return how much later than it is decoded each frame of an ISO file (MP4, MOV) is shown.

    Returns:
        int64 `[n]` in ticks of the first video track, in decoding order, empty if nothing is
        reordered; None for other files and where the frames are in fragments.
    """
    size = file.seek(0, io.SEEK_END)
    movie = _find(file, (0, size), b"moov")
    if movie is None or _find(file, movie, b"mvex") is not None:
        return None
    for name, start, end in _boxes(file, *movie):
        handler = _find(file, (start, end), b"mdia", b"hdlr") if name == b"trak" else None
        if handler is not None:
            file.seek(handler[0] + 8)
            if file.read(4) == b"vide":
                table = _find(file, (start, end), b"mdia", b"minf", b"stbl", b"ctts")
                return _run_lengths(_table(file, table, ">u4,>u4", ">u4,>i4"))
    return None


def _run_lengths(table: np.ndarray) -> np.ndarray:
    """Return the int64 values of a table of (count, value), none if they are implausibly many."""
    counts = table["f0"].astype(np.int64)
    return np.repeat(table["f1"].astype(np.int64), counts if counts.sum() <= _MOST_FRAMES else 0)


def _table(file: BinaryIO, box: tuple[int, int] | None, *layouts: str) -> np.ndarray:
    """Read a counted table with fields `f0`, `f1`, …; its layout depends on the box's version."""
    data = b""
    if box is not None:
        file.seek(box[0])
        data = file.read(min(box[1] - box[0], _LARGEST_TABLE))
    version, count = struct.unpack_from(">B3xI", data) if len(data) >= 8 else (0, 0)
    kinds = layouts[min(version, len(layouts) - 1)].split(",")
    layout = np.dtype([(f"f{i}", kind) for i, kind in enumerate(kinds)])
    count = min(count, max(0, len(data) - 8) // layout.itemsize)
    return np.frombuffer(data[8 : 8 + count * layout.itemsize], layout)


def _find(file: BinaryIO, span: tuple[int, int], *names: bytes) -> tuple[int, int] | None:
    for name in names:
        found = [(start, end) for box, start, end in _boxes(file, *span) if box == name]
        if not found:
            return None
        span = found[0]
    return span


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start of the content and promised end of every ISO box in `[start, end)`."""
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


def _segment(head: bytes) -> tuple[int, int]:
    """Return where the content of the Matroska segment starts and ends; end 0: unknown."""
    _, position = _ebml_number(head, 4)
    header_length, _ = _ebml_number(head, 4)
    position += header_length
    if head[position : position + 4] != b"\x18S\x80g":
        return 0, 0
    length, content = _ebml_number(head, position + 4)
    return content, 0 if length == _UNKNOWN_SIZE else content + length


def _break(file: BinaryIO, start: int, end: int, names: tuple[bytes, ...]) -> int | None:
    """Return the first place in `[start, end)` that begins no element with one of these names."""
    while start < end:
        file.seek(start)
        head = file.read(12) or b"\0"
        width = 9 - head[0].bit_length()
        length, content = _ebml_number(head, width)
        if head[:width] == _CLUSTER and length == _UNKNOWN_SIZE:
            return None  # a live recording: its length is unknown
        stop = start + content + length
        if head[:width] not in names or length == _UNKNOWN_SIZE or stop > end:
            return start
        if head[:width] == _CLUSTER:
            inside = _break(file, start + content, stop, _IN_CLUSTER)
            if inside is not None:
                return inside
        start = stop
    return None


def _ebml_number(data: bytes, at: int) -> tuple[int, int]:
    """Read a variable-length EBML size; return it and the position after it."""
    if at >= len(data) or not data[at]:
        return _UNKNOWN_SIZE, at + 1
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (_UNKNOWN_SIZE if value == (1 << 7 * width) - 1 else value), at + width
