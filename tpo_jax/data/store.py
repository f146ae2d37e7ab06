"""The videos of a data set, each stored once: `videos/` beside the pairs.

A video is consecutive records of one ArrayRecord shard: its parts and, after them, its header, or
its sampled frames as images. `index.jsonl` says where each video lies; its size in memory does not
grow with the length of the videos. `tfds.builder_from_directory(dir)` opens the directory, too.
"""

import dataclasses
import functools
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from tpo_jax.data.array_records import IMPORTING_TFDS, sha256, shard_names, write_info
from tpo_jax.errors import InputError
from tpo_jax.io.files import write_lines
from tpo_jax.video.packets import Header, Part, StoredVideo

FOLDER, NAME, INDEX = "videos", "tpo_videos", "index.jsonl"
_OPEN_SHARDS, _HEADERS = 64, 256  # kept open and in memory by each process


class VideoRecord(NamedTuple):
    """A part of a video, its header, or some of its frames as images."""

    video: str  # its path in the folder that `prepare` read
    number: int  # among the records of the video
    text: str  # JSON
    items: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """Return a `tf.train.Example` of `features()`; equal records are equal bytes."""
        # The encoder of TFDS takes a second for 24 MB.
        example = _example()
        feature = example.features.feature
        feature["video"].bytes_list.value.append(self.video.encode())
        feature["number"].int64_list.value.append(self.number)
        feature["text"].bytes_list.value.append(self.text.encode())
        feature["items"].bytes_list.value.extend(self.items)
        return example.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> "VideoRecord":
        """Return the record in `to_bytes`' result; `ValueError` if the bytes are no record."""
        from google.protobuf.message import DecodeError

        example = _example()
        try:
            example.ParseFromString(data)
            feature = example.features.feature
            video, text = (feature[name].bytes_list.value[0].decode() for name in ("video", "text"))
            number = feature["number"].int64_list.value[0]
        except (DecodeError, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"not a record of a video: {error}") from error
        return cls(video, number, text, tuple(feature["items"].bytes_list.value))


def _example() -> Any:
    return _message()()


@functools.cache
def _message() -> Any:
    with IMPORTING_TFDS:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example


def features() -> Any:
    """Return the `tfds.features.FeaturesDict` of a `VideoRecord`."""
    import tensorflow_datasets as tfds  # half a second: only where records are written

    item = tfds.features.Tensor(shape=(), dtype=np.object_)
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Text(),
            "number": tfds.features.Scalar(dtype=np.int64),
            "text": tfds.features.Text(),
            "items": tfds.features.Sequence(item),
        }
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a video lies: a line of the index."""

    video: str  # its path in the folder that `prepare` read
    digest: str  # hash of its content, by which pairs name it
    shard: int
    first: int  # position of its first record in the shard
    records: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Entry":
        """Return the entry of a line. Raises TypeError for fields of other names or types."""
        entry = cls(**values)
        for field in dataclasses.fields(cls):
            if type(getattr(entry, field.name)) is not field.type:
                raise TypeError(f"{field.name} is {getattr(entry, field.name)!r}")
        return entry


class VideoStore:
    """The videos of a directory of shards; picklable, each process opens its own files."""

    def __init__(self, directory: Path, shards: Sequence[dict[str, Any]], entries: Iterable[Entry]):
        self.directory, self.shards, self._entries = directory, tuple(shards), tuple(entries)
        self._forget()

    def _forget(self) -> None:
        self._by_digest = {entry.digest: entry for entry in self._entries}
        self._by_name = {entry.video: entry for entry in self._entries}
        self._lock = threading.Lock()
        self._sources: OrderedDict[int, ArrayRecordDataSource] = OrderedDict()
        self._headers = functools.lru_cache(_HEADERS)(self._header)

    def __len__(self) -> int:
        return len(self._by_digest)

    def __contains__(self, name: str) -> bool:
        """Return whether the folder that `prepare` read had a video with this path."""
        return name in self._by_name

    def __getstate__(self) -> dict[str, Any]:
        names = ("directory", "shards", "_entries")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def names(self) -> dict[str, str]:
        """Return the hash of every video by its path in the folder that `prepare` read."""
        return {name: entry.digest for name, entry in self._by_name.items()}

    def video(self, digest: str) -> StoredVideo:
        """Return the video with a hash, for everything that reads videos.

        Raises:
            InputError: It is missing, or its header is damaged.
        """
        return self._video(self._entry(digest))

    def named(self, name: str) -> StoredVideo:
        """Return the video with a path, one of `names()`; raises as `video`."""
        return self._video(self._by_name[name])

    def _video(self, entry: Entry) -> StoredVideo:
        def parts(numbers: Sequence[int]) -> list[Part]:
            records = self._records(entry, numbers)
            return [self._decoded(entry, Part.decode, record) for record in records]

        return StoredVideo(entry.video, self._headers(entry), parts)

    def images(self, digest: str) -> list[bytes]:
        """Return the encoded frames of a video that is stored as images; raises as `video`."""
        entry = self._entry(digest)
        records = self._records(entry, range(entry.records))
        return [image for record in records for image in record.items]

    def _entry(self, digest: str) -> Entry:
        if (entry := self._by_digest.get(digest)) is None:
            place = self.directory / INDEX
            raise InputError(f"{place}: holds no video {digest[:12]}…; run prepare again")
        return entry

    def _header(self, entry: Entry) -> Header:
        (record,) = self._records(entry, [entry.records - 1])
        header = self._decoded(entry, Header.decode, record)
        if header.digest != entry.digest or len(header.starts) != entry.records - 1:
            raise InputError(f"{self._path(entry)}: {entry.video}: not the video of {INDEX}")
        return header

    def _decoded(self, entry: Entry, decode: Any, record: VideoRecord) -> Any:
        try:
            return decode(record.text, record.items)
        except (ValueError, TypeError) as error:
            reason = f"record {entry.first + record.number} cannot be read: {error}"
            raise InputError(f"{self._path(entry)}: {reason}; run prepare again") from error

    def _records(self, entry: Entry, numbers: Sequence[int]) -> list[VideoRecord]:
        """Return some records of a video, read at once."""
        positions = [entry.first + number for number in numbers]
        try:
            encoded = deque(self._source(entry.shard).__getitems__(positions))
            records = []
            while encoded:  # so that records and their bytes are not all in memory together
                records.append(VideoRecord.from_bytes(encoded.popleft()))
        except (RuntimeError, ValueError, OSError) as error:
            reason = f"records of {entry.video} cannot be read: {' '.join(str(error).split())}"
            raise InputError(f"{self._path(entry)}: {reason}; run prepare again") from error
        if [(r.video, r.number) for r in records] != [(entry.video, n) for n in numbers]:
            raise InputError(
                f"{self._path(entry)}: holds other records than {INDEX} says of {entry.video}; "
                "run prepare again"
            )
        return records

    def _path(self, entry: Entry) -> Path:
        return self.directory / self.shards[entry.shard]["name"]

    def _source(self, shard: int) -> ArrayRecordDataSource:
        """Return an open shard; the most recently used ones stay open."""
        with self._lock:
            if (source := self._sources.pop(shard, None)) is None:
                entry = self.shards[shard]
                # With the number of records given, the file is not opened to count them.
                path = f"{self.directory / entry['name']}[0:{entry['records']}]"
                source = ArrayRecordDataSource([path])
            self._sources[shard] = source
            if len(self._sources) > _OPEN_SHARDS:
                self._sources.popitem(last=False)
        return source


def write_store(directory: Path, shards: Sequence[dict], entries: Iterable[Entry]) -> dict:
    """Write the files beside finished shards of videos; return what the manifest says of them."""
    write_lines(directory / INDEX, map(dataclasses.asdict, entries))
    write_info(directory, NAME, features(), shards)
    return {"shards": shards, "index": {"name": INDEX, "sha256": sha256(directory / INDEX)}}


def open_store(directory: Path, shards: Sequence[dict[str, Any]]) -> VideoStore:
    """Open the videos of a data set; their records are read when they are asked for.

    Args:
        directory: Where they lie.
        shards: Their entries in the manifest.

    Raises:
        InputError: The index or a shard is missing, cut off or damaged.
    """
    path = directory / INDEX
    try:
        with path.open(encoding="utf-8") as file:
            entries = [Entry.from_json(json.loads(line)) for line in file]
        # One listing: a bucket may hold thousands of shards.
        sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}; run prepare again") from error
    for shard in shards:
        name, size = directory / shard["name"], sizes.get(shard["name"])
        if size is None:
            raise InputError(f"{name}: no such file, but the manifest names it; run prepare again")
        if size != shard["bytes"]:
            wrong = f"{size} bytes instead of {shard['bytes']}"
            raise InputError(f"{name}: is cut off or changed, {wrong}")
    for entry in entries:
        shard_holds = shards[entry.shard]["records"] if 0 <= entry.shard < len(shards) else 0
        if not 0 <= entry.first < entry.first + entry.records <= shard_holds:
            raise InputError(f"{path}: {entry.video} lies outside of the shards; run prepare again")
    _message()  # imported here, not first in a thread that reads
    return VideoStore(directory, shards, entries)


def store_names(count: int) -> list[str]:
    """Return the file names of `count` shards of videos."""
    return shard_names(NAME, count)
