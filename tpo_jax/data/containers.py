"""What a video file says about itself that OpenCV does not pass on: is it cut off, was it edited.

Only headers and small tables are read, never pictures.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

_UNKNOWN_SIZE = -1
_LARGEST_TABLE = 1 << 26  # bytes; what a damaged file may make us read
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


def edited(file: BinaryIO) -> bool:
    """Whether an ISO file's edit list shows less than the whole video track, or rearranges it.

    Trimming a clip in a phone's gallery writes such a list: the hidden frames are still in the file
    and are decoded, but never shown. The short start offset of files with B-frames does not count.
    """
    size = file.seek(0, io.SEEK_END)
    for name, start, end in _boxes(file, 0, size):
        if name == b"moov":
            movie = _find(file, (start, end), b"mvhd")
            timescale = _timescale(file, movie)
            for track, first, last in _boxes(file, start, end):
                if track == b"trak" and _hides_frames(file, (first, last), timescale):
                    return True
    return False


def _hides_frames(file: BinaryIO, track: tuple[int, int], movie_timescale: int) -> bool:
    handler = _find(file, track, b"mdia", b"hdlr")
    edits = _find(file, track, b"edts", b"elst")
    if handler is None or edits is None:
        return False
    file.seek(handler[0] + 8)
    if file.read(4) != b"vide":
        return False
    shown = [
        (length, start) for length, start, _ in _table(file, edits, ">IiI", ">QqI") if start >= 0
    ]
    if len(shown) != 1:
        return len(shown) > 1
    length, start = shown[0]
    tables = (b"mdia", b"minf", b"stbl")
    delays = _table(file, _find(file, track, *tables, b"ctts"), ">II", ">Ii")
    steps = _table(file, _find(file, track, *tables, b"stts"), ">II", ">II")
    timescale = _timescale(file, _find(file, track, b"mdia", b"mdhd"))
    first = delays[0][1] if delays else 0
    end = first + sum(count * step for count, step in steps)
    # Length 0 means "to the end"; a tick of the movie's clock is lost to rounding.
    missing = (end - start) * movie_timescale - (length + 1.5) * timescale
    return start > first or (length > 0 and missing > 0)


def _table(file: BinaryIO, box: tuple[int, int] | None, *layouts: str) -> list[tuple[int, ...]]:
    """Entries of a counted table whose layout goes by the box's version."""
    if box is None:
        return []
    file.seek(box[0])
    data = file.read(min(box[1] - box[0], _LARGEST_TABLE))
    if len(data) < 8:
        return []
    version, count = struct.unpack_from(">B3xI", data)
    layout = struct.Struct(layouts[min(version, 1)])
    count = min(count, (len(data) - 8) // layout.size)
    return list(layout.iter_unpack(data[8 : 8 + count * layout.size]))


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
