"""ArrayRecord files that appear whole, and what TFDS needs beside them to open them."""

import hashlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from tpo_jax.errors import InputError
from tpo_jax.io.files import write_json

SPLIT, VERSION = "train", "2.0.0"
# TFDS imports its modules lazily, which changes `import` in all threads while it lasts
# (`etils.epy.lazy_imports`): two threads doing so may deadlock, and one that traces a program may
# fail. Shards and stores are opened, and TFDS imported, before any thread starts.
IMPORTING_TFDS = threading.Lock()


def shard_names(name: str, count: int) -> list[str]:
    """Return the file names of the `count` shards of a data set, as TFDS expects them."""
    return [f"{name}-{SPLIT}.array_record-{i:05d}-of-{count:05d}" for i in range(count)]


def write_records(path: Path, records: Iterable[bytes], name: str) -> dict[str, Any]:
    """Write a shard; return its entry of the manifest.

    Args:
        path: A temporary file; see `io.files.replacing_file`.
        records: Serialized `tf.train.Example`s, taken one by one, so that few are in memory.
        name: Name of the finished file, for the entry and for messages.

    Raises:
        InputError: The disk is full.
    """
    count = 0
    try:
        # Texts are short and videos are compressed already; chunks are written as they come.
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed,max_parallelism:1")
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
    except RuntimeError as error:  # such as a full disk
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path.parent / name}: cannot be written: {reason}; run again to resume"
        ) from error
    return {
        "name": name,
        "records": count,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
    }


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_info(directory: Path, name: str, features: Any, shards: Sequence[dict[str, Any]]) -> None:
    """Write what `tfds.builder_from_directory` reads.

    Args:
        directory: Where the shards lie.
        name: Of the data set.
        features: A `tfds.features.FeaturesDict`.
        shards: Entries of the manifest.
    """
    features.save_config(str(directory))
    split = {
        "name": SPLIT,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(shard["records"]) for shard in shards],
        "numBytes": str(sum(shard["bytes"] for shard in shards)),
    }
    info = {"name": name, "version": VERSION, "fileFormat": "array_record", "splits": [split]}
    write_json(directory / "dataset_info.json", info)


def check_shard(path: Path, entry: dict[str, Any]) -> None:
    """Check that a shard is what the manifest says, without reading its records.

    Raises:
        InputError: It is missing, cut off, or holds another number of records.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, but the manifest names it; run prepare again")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise InputError(f"{path}: is cut off or changed, {size} bytes instead of {entry['bytes']}")
    try:
        found = len(ArrayRecordDataSource([str(path)]))
    except RuntimeError as error:
        raise InputError(f"{path}: not an ArrayRecord file; run prepare again") from error
    if found != entry["records"]:
        count = entry["records"]
        raise InputError(f"{path}: holds {found} records, {count} expected; run prepare again")


def check_sum(path: Path, expected: str) -> None:
    """Compare a file with its checksum in the manifest. Raises `InputError` if they differ."""
    if not path.is_file() or sha256(path) != expected:
        raise InputError(f"{path}: changed since it was written; run prepare again")
