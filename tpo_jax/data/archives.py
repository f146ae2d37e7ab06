"""Archives of videos, whole or split into parts: joined as a stream, extracted safely."""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Self, cast

from tqdm import tqdm

from tpo_jax.errors import InputError
from tpo_jax.io.files import replacing

MOST_FILES, CHUNK = 1_000_000, 1 << 20


class Joined(io.RawIOBase):
    """Several files read as one without a copy: seekable, one file open at a time.

    Args:
        paths: The files, in order.
        size: Read at most this many bytes; None: all.
    """

    def __init__(self, paths: list[Path], size: int | None = None):
        self._paths = paths
        starts = [0, *accumulate(path.stat().st_size for path in paths)]
        self._starts = starts if size is None else [min(start, size) for start in starts]
        self._position = 0
        self._open: tuple[int, BinaryIO] | None = None

    @property
    def size(self) -> int:
        """Size of what is read, in bytes."""
        return self._starts[-1]

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the whole."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position in the whole and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of the part that the position lies in."""
        if self._position >= self.size:
            return 0
        index = bisect_right(self._starts, self._position) - 1
        if self._open is None or self._open[0] != index:
            self._close()
            self._open = (index, self._paths[index].open("rb"))
        file = self._open[1]
        file.seek(self._position - self._starts[index])
        view = memoryview(buffer)[: self._starts[index + 1] - self._position]
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"{self._paths[index]}: shorter than it was")
        self._position += count
        return count

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        """Close the file that is open."""
        self._close()
        super().close()


_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError),
    gzip.BadGzipFile,
)
# Keyed by the first bytes of a file. Each of them reads concatenated streams to the last one.
_COMPRESSED: dict[tuple[bytes, ...], Callable[[BinaryIO], Any]] = {
    (b"\x1f\x8b",): lambda file: gzip.GzipFile(fileobj=file),
    (b"BZh",): bz2.BZ2File,
    (b"\xfd7zXZ", b"\x5d\x00\x00\x80"): lzma.LZMAFile,
}
_TAR_MAGIC = slice(257, 262), b"ustar"  # of every tar but the oldest kind


class _Member(NamedTuple):
    name: str
    size: int
    file: BinaryIO


class _Entry(tarfile.TarInfo):
    """A tar's entry. A truncated or garbled header, or a file without the zero blocks that end an
    archive, is an error; tarfile takes it for the end.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            entry = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            zeros = isinstance(error, tarfile.EOFHeaderError)  # type: ignore[attr-defined]
            nothing = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            if zeros or (nothing and vars(archive).get("ended")):
                vars(archive)["ended"] = True
                raise
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error
        vars(archive)["ended"] = False
        return entry


def parts(archive: Path) -> list[Path]:
    """Return the parts of an archive in order: the file itself, or all files whose names begin so.

    Raises:
        InputError: There is none, or one between two others is missing.
    """
    if archive.is_file():
        return [archive]
    found = sorted(p for p in archive.parent.glob(f"{archive.name}*") if p.is_file())
    if not archive.name or not found:
        raise InputError(f"--archive={archive}: no file, and none whose name begins so")
    suffixes = [path.name.removeprefix(archive.name) for path in found]
    for before, after in zip(suffixes, suffixes[1:], strict=False):
        if _number(after) != _number(before) + 1 or len(after) != len(before):
            raise InputError(
                f"--archive={archive}: a part is missing between {before!r} and {after!r}"
            )
    return found


def _number(suffix: str) -> int:
    """Return the number of a part named `aa`, `ab`, … or `00`, `01`, …"""
    number = 0
    for c in suffix:
        number = number * (10 if c.isdecimal() else 26)
        number += int(c) if c.isdecimal() else ord(c.lower()) - ord("a")
    return number


def unpack(archive: Path, folder: Path, limit: int = 0) -> int:
    """Extract the files of an archive that are not in the folder yet; return how many it holds.

    Args:
        archive: A tar (plain, gzip, bzip2, xz) or zip file, whatever its suffix, or several of
            one kind concatenated; or what the names of its parts begin with.
        folder: Created if absent; no file is written outside of it.
        limit: Most bytes to extract; 0: three times the size of the archive.

    Raises:
        InputError: A member leaves the folder or is a link or a device, two members have one name,
            there are more bytes than `limit`, or the file is damaged or not an archive.
    """
    paths = parts(archive)
    joined = Joined(paths)
    limit = limit or 3 * joined.size
    made: set[str] = set()
    written = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with joined, tqdm(total=joined.size, desc="unpack", unit="B", unit_scale=True) as bar:
            for member in _members(archive, paths, joined):
                name = _checked(archive, folder, member.name)
                if name in made:
                    raise InputError(f"{archive}: holds {name!r} twice")
                made.add(name)
                if len(made) > MOST_FILES:
                    raise InputError(f"{archive}: holds more than {MOST_FILES} files")
                target = folder / name
                if not (target.is_file() and target.stat().st_size == member.size):
                    _copy(archive, member, target, limit - written)
                written += member.size
                if written > limit:
                    raise _too_much(archive, limit)
                bar.update(joined.tell() - bar.n)
    except (*_DAMAGE, OSError, ValueError, RuntimeError) as error:
        # An error of the disk has an errno; the bz2 module's error for invalid data has none.
        if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive}: damaged or cut off: {reason}") from error
    if not made:
        raise InputError(f"{archive}: holds no file")
    return len(made)


def _members(archive: Path, paths: list[Path], joined: Joined) -> Iterator[_Member]:
    file: Any = io.BufferedReader(joined, CHUNK)
    beginning = file.read(512)
    compressed = next((f for b, f in _COMPRESSED.items() if beginning.startswith(b)), None)
    # A tar whose last file is a zip ends like a zip.
    place, magic = _TAR_MAGIC
    is_tar = compressed is not None or beginning[place] == magic
    if not is_tar and zipfile.is_zipfile(file):
        yield from _of_zip(archive, paths, joined.size)
        return
    file.seek(0)
    file = file if compressed is None else compressed(file)
    try:
        # Zeros end an archive; another one may follow, as `cat a.tar b.tar` makes it.
        stream = tarfile.open(fileobj=file, mode="r|", tarinfo=_Entry, ignore_zeros=True)  # noqa: SIM115, closed below
    except tarfile.ReadError as error:
        raise InputError(f"{archive}: neither a tar nor a zip archive") from error
    with stream:
        for entry in stream:
            if entry.isdir():
                continue
            if not entry.isreg():
                kind = "a link" if entry.issym() or entry.islnk() else "not a plain file"
                raise InputError(f"{archive}: {entry.name!r} is {kind}")
            if (content := stream.extractfile(entry)) is not None:
                yield _Member(entry.name, entry.size, cast(BinaryIO, content))


def _of_zip(archive: Path, paths: list[Path], size: int) -> Iterator[_Member]:
    """Yield the members of the zip that ends at byte `size`, after those of a zip before it."""
    with (
        io.BufferedReader(Joined(paths, size), CHUNK) as file,
        zipfile.ZipFile(file) as packed,
    ):
        # The members' offsets tell where this zip begins; what precedes it may also be a program.
        first = min((info.header_offset for info in packed.infolist()), default=0)
        with io.BufferedReader(Joined(paths, first)) as before:
            several = first > 0 and zipfile.is_zipfile(before)
        if several:
            yield from _of_zip(archive, paths, first)
        for info in packed.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise InputError(f"{archive}: {info.filename!r} is a link")
            if not info.is_dir():
                with packed.open(info) as content:
                    yield _Member(info.filename, info.file_size, cast(BinaryIO, content))


def _checked(archive: Path, folder: Path, name: str) -> str:
    """Return the path of a member in the folder; raise if it would be written elsewhere."""
    path = PurePosixPath(name)
    odd = "\\" in name or any(ord(c) < 32 for c in name)
    if odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"{archive}: the path {name!r} leaves the folder or is not a plain path")
    try:
        tarfile.data_filter(tarfile.TarInfo(name), str(folder))
    except tarfile.FilterError as error:
        raise InputError(f"{archive}: {name!r} would be written through a link") from error
    return str(path)


def _copy(archive: Path, member: _Member, target: Path, limit: int) -> None:
    """Write a member, counting the bytes that come, not those that its header promises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, "wb") as out:
        while block := member.file.read(CHUNK):
            limit -= len(block)
            if limit < 0:
                raise _too_much(archive, 0)
            out.write(block)


def _too_much(archive: Path, limit: int) -> InputError:
    bound = f" of {limit} bytes" if limit else ""
    return InputError(f"{archive}: unpacks to more than the limit{bound}; raise --unpacked_gb")
