"""Read preference data in its published formats as records for `data/pairs.py`.

| what | how it is recognized |
|---|---|
| `.jsonl`, `.json`, `.csv`, `.yaml`, `.parquet` | the suffix |
| a LLaVA-NeXT mixture | YAML with `datasets`, each `json_path` and `sampling_strategy` |
| a folder of Hugging Face `datasets` | Parquet files, or what `save_to_disk` leaves |
| conversations of ms-swift, LlamaFactory, LLaVA, TRL | `data/conversations.py` |
| columns of other names, one row per pair | `data/columns.py`, or `--column role=name` |
| one row per answer | roles `answer` and `preferred`; rows of one video and prompt become pairs |

LLaVA-Hound's `sft_dpo_17k.jsonl` is read unchanged: its `video` is a folder of frames.
"""

import csv
import io
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import yaml

from tpo_jax.data.columns import Record, json_of, renamed
from tpo_jax.data.conversations import adapt
from tpo_jax.errors import InputError


def read_records(path: Path, columns: Mapping[str, str], stills: bool) -> Iterator[Record]:
    """Yield the records of a list, with the field names of this package where their form is known.

    Args:
        path: A file or folder of the table above.
        columns: Role to name, for tables and objects with other names.
        stills: Whether a table may lack a column of videos.

    Raises:
        InputError: The list is missing, of another kind, cannot be parsed, or lacks a column.
    """
    records = _mixed(path) if path.suffix.lower() in (".yaml", ".yml") else _raw(path)
    if path.is_dir() or path.suffix.lower() in (".csv", ".parquet") or columns:
        records = renamed(path, records, columns, stills)
    for number, where, record in records:
        try:
            yield number, where, adapt(record) if isinstance(record, dict) else record
        except ValueError as error:
            yield number, where, error


def _raw(path: Path) -> Iterator[Record]:
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _json_lines,
        ".json": _json_file,
        ".csv": _csv,
        ".parquet": lambda p: _rows(p.name, pyarrow.parquet.ParquetFile(p).iter_batches(256)),
    }
    reader = _hugging_face if path.is_dir() else readers.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join([*readers, ".yaml", ".yml"])
        raise InputError(f"{path}: pairs are read from {kinds} or a folder of datasets")
    try:
        yield from reader(path)
    except (OSError, ValueError, csv.Error, pyarrow.ArrowException, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: cannot be read: {reason}") from error


def _json_file(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        records = json.loads(text)
    except ValueError:
        first = next((line for line in text.split("\n") if line.strip()), "")
        if not isinstance(json_of(first), dict):
            raise
        return _json_lines(path)  # JSON Lines in spite of the suffix
    one = isinstance(records, dict) and records
    return _listed(path, [records] if one else records)


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            yield number, f"{path.name}:{number}", json_of(line)


def _listed(path: Path, records: Any) -> Iterator[Record]:
    if not isinstance(records, list):
        name = "nothing" if records is None else type(records).__name__
        raise InputError(f"{path}: must be a list of pairs, not {name}")
    for number, record in enumerate(records, 1):
        yield number, f"{path.name}, record {number}", record


def _csv(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    # Not `splitlines`: characters such as U+2028, which end a line there, are text in a cell.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        yield reader.line_num, f"{path.name}:{reader.line_num}", _cells(row)


def _cells(row: dict) -> Any:
    if None in row or None in row.values():
        return ValueError("the number of cells is not that of the header")
    return dict(row)


def _hugging_face(folder: Path) -> Iterator[Record]:
    """Yield the records of a `datasets` folder, of its split `train` if it has several."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if "train" not in splits and len(splits) != 1:
            raise InputError(f"{folder}: name the folder of one of its splits: {', '.join(splits)}")
        folder = folder / ("train" if "train" in splits else splits[0])
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        batches = (
            batch
            for entry in state["_data_files"]
            for batch in pyarrow.ipc.open_stream((folder / entry["filename"]).read_bytes())
        )
        yield from _rows(folder.name, batches)
        return
    files = sorted(folder.rglob("*.parquet"))
    # Split of a file: in its name (`data/train-00000-of-…`), or its folder (`default/train/0000…`).
    places = {file: file.relative_to(folder).parts for file in files}
    if trained := [
        file for file, parts in places.items() if parts[-1].startswith("train") or "train" in parts
    ]:
        files = trained
    if not files:
        raise InputError(f"{folder}: holds no Parquet file and is no saved dataset")
    batches = (b for file in files for b in pyarrow.parquet.ParquetFile(file).iter_batches(256))
    yield from _rows(folder.name, batches)


def _rows(name: str, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            record = {k: v for k, v in row.items() if v is not None}
            yield number, f"{name}, row {number}", record


def _mixed(path: Path) -> Iterator[Record]:
    """Yield a YAML list, or the files of a LLaVA-NeXT mixture, each sampled by its strategy."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if not isinstance(content, dict) or "datasets" not in content:
        yield from _listed(path, content)
        return
    number = 0
    for entry in content["datasets"] or ():
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise InputError(f"{path}: every entry of datasets must have a json_path")
        source = path.parent / entry["json_path"]
        strategy = str(entry.get("sampling_strategy", "all"))
        for _, where, record in _sampled(f"{path}", strategy, list(_raw(source))):
            number += 1
            # Ids of two files may be the same.
            if isinstance(record, dict) and record.get("id") is not None:
                record = record | {"id": f"{source.stem}/{record['id']}"}
            yield number, where, record


def _sampled(path: str, strategy: str, records: list[Record]) -> list[Record]:
    """Return `all`, `first:N`, `end:N` or `random:N` records; N may be a percentage, rounded up.

    The original shuffles with unseeded random numbers; here the choice is always the same.
    """
    how, _, amount = strategy.partition(":")
    if how == "all" and not amount:
        return records
    number = amount.removesuffix("%")
    if how not in ("first", "end", "random") or not number.isdecimal():
        raise InputError(
            f"{path}: sampling_strategy {strategy!r} must be all, first:N, end:N or random:N, "
            "N a number or a percentage"
        )
    count = int(number)
    if amount.endswith("%"):
        count = math.ceil(count * len(records) / 100)
    if how == "random":
        return random.Random(0).sample(records, min(count, len(records)))
    return records[:count] if how == "first" else records[max(0, len(records) - count) :]
