"""A directory of pairs: ArrayRecord shards in TFDS naming, `index.jsonl` and `manifest.json`.

`tfds.builder_from_directory(dir).as_data_source()` and `grain.sources.ArrayRecordDataSource` open
it too. `index.jsonl` repeats every record without its frames, so that ordering, mixing and
measuring prompts never read a clip.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from tpo_jax.data.records import PairRecord, features
from tpo_jax.errors import InputError
from tpo_jax.io.files import replacing_file, write_json, write_lines
from tpo_jax.io.paths import Place

FORMAT = 1
NAME, SPLIT, VERSION = "tpo_pairs", "train", "1.1.0"
MANIFEST, INDEX = "manifest.json", "index.jsonl"
# Fields that readers count on, and their JSON types.
_FIELDS: dict[str, Any] = {"format": int, "frames": str, "sampling": dict, "shards": list}
_SAMPLING_FIELDS: dict[str, Any] = {"rule": str, "num_frames": int}
_SHARD_FIELDS: dict[str, Any] = {"name": str, "pairs": int, "bytes": int, "sha256": str}


def shard_names(count: int) -> list[str]:
    """Return the file names of `count` shards, as TFDS expects them."""
    return [f"{NAME}-{SPLIT}.array_record-{i:05d}-of-{count:05d}" for i in range(count)]


def write_shard(path: Place, records: Iterable[PairRecord]) -> dict[str, Any]:
    """Write a shard, whole or not at all; return its entry of the manifest."""
    count = 0
    try:
        with replacing_file(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")
            for record in records:
                writer.write(record.to_bytes())
                count += 1
            writer.close()
            size, digest = temporary.stat().st_size, _sha256(temporary)
    except RuntimeError as error:  # a full disk, for one
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be written: {reason}; run again to resume") from error
    return {"name": path.name, "pairs": count, "bytes": size, "sha256": digest}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_metadata(directory: Path, index: Iterable[dict], manifest: dict[str, Any]) -> None:
    """Write the files beside finished shards; the manifest comes last.

    Args:
        directory: Where `manifest["shards"]` lie.
        index: `PairRecord.to_json` of every pair, in the order of the shards.
        manifest: What `open_shards` reads, and more for people.
    """
    write_lines(directory / INDEX, index)
    features().save_config(str(directory))
    split = {
        "name": SPLIT,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(shard["pairs"]) for shard in manifest["shards"]],
        "numBytes": str(sum(shard["bytes"] for shard in manifest["shards"])),
    }
    info = {"name": NAME, "version": VERSION, "fileFormat": "array_record", "splits": [split]}
    write_json(directory / "dataset_info.json", info)
    index_entry = {"name": INDEX, "sha256": _sha256(directory / INDEX)}
    write_json(directory / MANIFEST, {"format": FORMAT, **manifest, "index": index_entry})


@dataclasses.dataclass(frozen=True)
class Shards:
    """The pairs of a shard directory by position; picklable, each process opens its own files."""

    directory: Path
    manifest: dict[str, Any]
    index: tuple[PairRecord, ...]  # without frames

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> PairRecord:
        """Return the record at a position.

        Raises:
            InputError: The shard, which is named, is damaged there.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} pairs")
        ends = np.cumsum([shard["pairs"] for shard in self.manifest["shards"]])
        path = self._paths[int(np.searchsorted(ends, position, side="right"))]
        try:
            record = PairRecord.from_bytes(self._source[position])
        except (RuntimeError, ValueError) as error:
            reason = f"record {position} cannot be read: {' '.join(str(error).split())}"
            raise InputError(f"{path}: {reason}; run prepare again") from error
        if record.id != self.index[position].id:
            raise InputError(f"{path}: record {position} is not that of {INDEX}; run prepare again")
        return record

    @property
    def fingerprint(self) -> str:
        """Hash of the content of all shards, the same wherever the directory lies."""
        digests = "".join(shard["sha256"] for shard in self.manifest["shards"])
        return hashlib.sha256(digests.encode()).hexdigest()

    @functools.cached_property
    def _paths(self) -> list[str]:
        return [str(self.directory / shard["name"]) for shard in self.manifest["shards"]]

    @functools.cached_property
    def _source(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(self._paths)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("directory", "manifest", "index")}


def open_shards(directory: str | Path, *, verify: bool = False) -> Shards:
    """Open a directory that `prepare` made.

    Args:
        directory: Of the shards.
        verify: Whether to read every file and compare it with its checksum.

    Raises:
        InputError: Manifest, index or a shard is missing, damaged or does not match the others.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: no such file; make the shards with python -m tpo_jax.prepare")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _check_fields(manifest, _FIELDS)
        _check_fields(manifest["sampling"], _SAMPLING_FIELDS)
        for shard in manifest["shards"]:
            _check_fields(shard, _SHARD_FIELDS)
        shards = [(s["name"], s["pairs"], s["bytes"]) for s in manifest["shards"]]
        version = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a manifest of shards: {error!r}") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version} is not {FORMAT}; run prepare again")
    for name, count, size in shards:
        _check_shard(directory / name, count, size)
    if verify:
        for entry in (*manifest["shards"], manifest.get("index", {"name": INDEX})):
            _verify(directory / entry["name"], entry.get("sha256"))
    path = directory / INDEX
    try:
        with path.open(encoding="utf-8") as file:
            index = tuple(PairRecord.from_json(json.loads(line)) for line in file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}; run prepare again") from error
    if len(index) != (total := sum(count for _, count, _ in shards)):
        raise InputError(f"{path}: has {len(index)} pairs, the shards {total}; run prepare again")
    return Shards(directory, manifest, index)


def _verify(path: Path, expected: str | None) -> None:
    if expected is None:
        raise InputError(
            f"{path}: cannot be verified, an older prepare noted no checksum of it in {MANIFEST}; "
            "run prepare again or do not ask for it"
        )
    if _sha256(path) != expected:
        raise InputError(f"{path}: changed since it was written; run prepare again")


def _check_shard(path: Path, count: int, size: int) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file, but the manifest names it; run prepare again")
    if (actual := path.stat().st_size) != size:
        raise InputError(f"{path}: is cut off or changed, {actual} bytes instead of {size}")
    try:
        found = len(ArrayRecordDataSource([str(path)]))
    except RuntimeError as error:
        raise InputError(f"{path}: not an ArrayRecord file; run prepare again") from error
    if found != count:
        raise InputError(f"{path}: holds {found} records, {count} expected; run prepare again")


def _check_fields(value: Any, kinds: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError unless a JSON object has fields of these types."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    for name, kind in kinds.items():
        if not isinstance(found := value[name], kind) or isinstance(found, bool):
            raise TypeError(f"{name} is {found!r}")
