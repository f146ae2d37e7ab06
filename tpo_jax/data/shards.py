"""A directory of pairs and their videos: ArrayRecord shards in TFDS naming, `index.jsonl`,
`manifest.json`, and the videos in `videos/` (`data/store.py`).

`tfds.builder_from_directory(dir).as_data_source()` and `grain.sources.ArrayRecordDataSource` open
both. `index.jsonl` repeats every pair, so that ordering, mixing and measuring prompts read one
file.
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

from tpo_jax.data import array_records, store
from tpo_jax.data.array_records import check_shard, check_sum, write_info
from tpo_jax.data.records import PairRecord, features
from tpo_jax.data.store import VideoStore, open_store
from tpo_jax.errors import InputError
from tpo_jax.io.files import replacing_file, write_json, write_lines

# Of shards of questions alone, and of shards with conversations, which have one more field.
FORMAT, FORMAT_WITH_HISTORY = 2, 3
NAME = "tpo_pairs"
MANIFEST, INDEX = "manifest.json", "index.jsonl"
FRAME_ENCODINGS = ("clip", "png", "jpeg")  # how videos are stored: packets, or sampled frames
# Fields that readers count on, and their JSON types.
_FIELDS: dict[str, Any] = {
    "frames": str,
    "sampling": dict,
    "shards": list,
    "index": dict,
    "store": dict,
}
_SAMPLING_FIELDS: dict[str, Any] = {"rule": str, "num_frames": int}
_SHARD_FIELDS: dict[str, Any] = {"name": str, "records": int, "bytes": int, "sha256": str}
_STORE_FIELDS: dict[str, Any] = {"shards": list, "index": dict}
_INDEX_FIELDS: dict[str, Any] = {"name": str, "sha256": str}


def write_shard(path: Path, records: Iterable[PairRecord], history: bool = False) -> dict[str, Any]:
    """Write a shard of pairs, whole or not at all; return its entry of the manifest.

    Args:
        path: Of the shard.
        records: Its pairs.
        history: Whether any pair of the directory has a history.
    """
    with replacing_file(path) as temporary:
        examples = (record.to_bytes(history) for record in records)
        return array_records.write_records(temporary, examples, path.name)


def shard_names(count: int) -> list[str]:
    """Return the file names of `count` shards of pairs."""
    return array_records.shard_names(NAME, count)


def write_metadata(directory: Path, index: Iterable[dict], manifest: dict[str, Any]) -> None:
    """Write the files beside finished shards; the manifest comes last.

    Args:
        directory: Where `manifest["shards"]` lie.
        index: `PairRecord.to_json` of every pair, in the order of the shards.
        manifest: What `open_shards` reads, and more for people.
    """
    lines = list(index)
    history = any("history" in line for line in lines)
    write_lines(directory / INDEX, lines)
    write_info(directory, NAME, features(history), manifest["shards"])
    index_entry = {"name": INDEX, "sha256": array_records.sha256(directory / INDEX)}
    version = FORMAT_WITH_HISTORY if history else FORMAT
    write_json(directory / MANIFEST, {"format": version, **manifest, "index": index_entry})


@dataclasses.dataclass(frozen=True)
class Shards:
    """The pairs of a shard directory by position; picklable, each process opens its own files."""

    directory: Path
    manifest: dict[str, Any]
    index: tuple[PairRecord, ...]
    videos: VideoStore

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> PairRecord:
        """Return the record at a position.

        Raises:
            InputError: The shard is damaged there; the message names it.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} pairs")
        ends = np.cumsum([shard["records"] for shard in self.manifest["shards"]])
        path = self._paths[int(np.searchsorted(ends, position, side="right"))]
        try:
            history = self.manifest["format"] == FORMAT_WITH_HISTORY
            record = PairRecord.from_bytes(self._source[position], history)
        except (RuntimeError, ValueError) as error:
            reason = f"record {position} cannot be read: {' '.join(str(error).split())}"
            raise InputError(f"{path}: {reason}; run prepare again") from error
        if record.id != self.index[position].id:
            raise InputError(f"{path}: record {position} is not that of {INDEX}; run prepare again")
        return record

    @property
    def fingerprint(self) -> str:
        """Hash of the content of all pairs, which name their videos by the hash of their content;
        the same wherever the directory lies.
        """
        digests = "".join(shard["sha256"] for shard in self.manifest["shards"])
        return hashlib.sha256(digests.encode()).hexdigest()

    @functools.cached_property
    def _paths(self) -> list[str]:
        return [str(self.directory / shard["name"]) for shard in self.manifest["shards"]]

    @functools.cached_property
    def _source(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(self._paths)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def open_shards(directory: str | Path, *, verify: bool = False) -> Shards:
    """Open a directory that `prepare` made.

    Args:
        directory: Of the shards.
        verify: Whether to read every file and compare it with its checksum.

    Raises:
        InputError: Manifest, index or a shard is missing, damaged or does not match the others.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory / MANIFEST)
    for entry in manifest["shards"]:
        check_shard(directory / entry["name"], entry)
    if verify:
        _verify_all(directory, manifest)
    path = directory / INDEX
    try:
        with path.open(encoding="utf-8") as file:
            index = tuple(PairRecord.from_json(json.loads(line)) for line in file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}; run prepare again") from error
    if len(index) != (total := sum(shard["records"] for shard in manifest["shards"])):
        raise InputError(f"{path}: has {len(index)} pairs, the shards {total}; run prepare again")
    videos = open_store(directory / store.FOLDER, manifest["store"]["shards"])
    return Shards(directory, manifest, index, videos)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; make the shards with python -m tpo_jax.prepare")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _check_fields(manifest, {"format": int})
        if (version := manifest["format"]) in (FORMAT, FORMAT_WITH_HISTORY):
            _check_fields(manifest, _FIELDS)
            _check_fields(manifest["sampling"], _SAMPLING_FIELDS)
            videos = manifest["store"]
            _check_fields(videos, _STORE_FIELDS)
            for shard in (*manifest["shards"], *videos["shards"]):
                _check_fields(shard, _SHARD_FIELDS)
            for index in (manifest["index"], videos["index"]):
                _check_fields(index, _INDEX_FIELDS)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a manifest of shards: {error!r}") from error
    if version not in (FORMAT, FORMAT_WITH_HISTORY):
        raise InputError(
            f"{path}: shards of format {version}; this version reads formats {FORMAT} and "
            f"{FORMAT_WITH_HISTORY}, which hold each video once: run prepare again with another "
            "--output"
        )
    return manifest


def _verify_all(directory: Path, manifest: dict[str, Any]) -> None:
    videos = manifest["store"]
    for folder, described in ((directory, manifest), (directory / store.FOLDER, videos)):
        for entry in (*described["shards"], described["index"]):
            check_sum(folder / entry["name"], entry["sha256"])


def _check_fields(value: Any, kinds: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError unless a JSON object has fields of these types."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    for name, kind in kinds.items():
        if not isinstance(found := value[name], kind) or isinstance(found, bool):
            raise TypeError(f"{name} is {found!r}")
