"""Write pairs and videos to a shard directory: first the videos, then the pairs that can be used;
or a folder of videos alone, as a store.

Work happens in `<output>.partial`, where every finished shard of videos has a note of what it was
made of. A second run resumes there and repeats what a changed input affects.
"""

import dataclasses
import functools
import importlib.metadata
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import tpo_jax
from tpo_jax.data import checks, shards, store, storing
from tpo_jax.data.checks import Settings
from tpo_jax.data.folders import identity_of, names_in
from tpo_jax.data.pairs import Pair, Rejection, read_pairs
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.io.files import hash_of, read_json, write_json, write_lines
from tpo_jax.io.paths import Place, check_folder, place

PAIRS_PER_SHARD = 10_000
REJECTED = "rejected.jsonl"


@dataclasses.dataclass(frozen=True)
class Work:
    """How pairs and videos are split up, and who does the work; no record depends on it."""

    num_shards: int = 0  # of pairs; 0: one for every 10,000
    workers: int = 1  # processes; 1: only this one
    strict: bool = False  # stop at the first bad pair instead of listing it in `rejected.jsonl`
    beam: str | None = None  # options of an Apache Beam pipeline that does it; may be empty
    shard_mb: int = 256  # a shard of videos is full at this many megabytes of files


def prepare(
    pairs_file: str | Path | None,
    videos: str | Place,
    output: str | Path,
    settings: Settings,
    work: Work = Work(),
    *,
    columns: Mapping[str, str] | None = None,
    excluded: Path | None = None,
) -> dict[str, Any]:
    """Write the directory `output` and return its manifest; an unfinished run is resumed.

    Args:
        pairs_file: A list for `read_pairs`; None: all videos are stored, without pairs.
        videos: The folder that `video` fields are relative to, or a store made of it; may be in a
            bucket, `gs://…`.
        output: Absent, empty, or the result of the same inputs.
        settings: What is stored of a video.
        work: How it is done.
        columns: Of the list, as `read_pairs` takes them.
        excluded: File of ids, one a line, of pairs that are left out.

    Raises:
        InputError: The inputs give nothing, or a pair or video is bad and `work.strict` is set.
    """
    root, output = place(videos), Path(output)
    check_folder("--videos", root)
    own = isinstance(root, Path) and output.resolve().is_relative_to(root.resolve())
    if pairs_file is None and own:
        raise InputError(f"--output={output}: lies in --videos={root}, all of which is stored")
    beam = _beam(work.beam) if work.beam is not None else None
    pairs, rejections = _listed(pairs_file, root, columns, excluded)
    names = names_in(root) if pairs_file is None else [v for p in pairs for v in p.videos]
    videos_of = {video: identity_of(root / video) for video in dict.fromkeys(names)}
    listed = [pair.to_json() for pair in pairs]
    settled = [dataclasses.asdict(settings), work.num_shards, work.shard_mb, listed, rejections]
    inputs = hash_of([*settled, videos_of])
    if (done := _finished(output, inputs)) is not None:
        return done
    if work.strict and rejections:
        raise InputError(f"{rejections[0].where}: {rejections[0].reason}")
    partial = Path(os.path.abspath(output) + ".partial")
    try:
        (partial / store.FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{partial}: cannot be made: {error.strerror}") from error

    blocks = _blocks(videos_of, work.shard_mb * 10**6)
    jobs = [(root, block, settings) for block in blocks]
    notes = {}
    for note in _stored(partial / store.FOLDER, jobs, work, beam):
        notes[note["key"]] = note
        if work.strict and any("error" in facts for facts in note["videos"].values()):
            break
    found = {name: facts for note in notes.values() for name, facts in note["videos"].items()}
    good = _usable(pairs, found, rejections)
    what, left = "pairs", len(good)
    if pairs_file is None:
        bad = [facts["error"] for facts in found.values() if "error" in facts]
        rejections = [Rejection(str(root), reason, None) for reason in bad]
        what, left = "videos", len(found) - len(bad)
    if not left or (rejections and work.strict):
        shutil.rmtree(partial)
        if not rejections:
            raise InputError(f"--videos={root}: holds no video")
        first, count = rejections[0], len(rejections)
        some = "" if work.strict else f"none of the {count} {what} can be used, the first: "
        raise InputError(f"{some}{first.where}: {first.reason}")
    manifest = _manifest(good, settings) | {"rejected": len(rejections), "inputs": inputs}
    if pairs_file is None:
        manifest["videos"] = left
    ordered = [notes[storing.key_of(block, settings)] for block in blocks]
    manifest["store"] = _name_videos(partial / store.FOLDER, ordered)
    records = [_record(pair, found) for pair in good]
    manifest["shards"] = _write_pairs(partial, records, work.num_shards)
    if rejections:
        write_lines(partial / REJECTED, map(dataclasses.asdict, rejections))
    shards.write_metadata(partial, map(PairRecord.to_json, records), manifest)
    os.replace(partial, output)
    return manifest


def _usable(
    pairs: Sequence[Pair], found: Mapping[str, dict], rejections: list[Rejection]
) -> list[Pair]:
    """Return the pairs without a complaint, or whose videos are not checked; add the others to the
    rejections.
    """
    good: list[Pair] = []
    for pair in pairs:
        if reason := checks.complaint(pair, found):
            rejections.append(Rejection(pair.where, reason, pair.to_json()))
        else:
            good.append(pair)
    return good


def _write_pairs(folder: Path, records: Sequence[PairRecord], count: int) -> list[dict[str, Any]]:
    """Write `count` shards of pairs, 0: as many as needed; return their manifest entries."""
    count = min(count or -(-len(records) // PAIRS_PER_SHARD), len(records))
    history = any(record.history for record in records)
    parts = np.array_split(np.arange(len(records)), count) if count else []
    return [
        shards.write_shard(folder / name, (records[i] for i in part), history)
        for name, part in zip(shards.shard_names(count), parts, strict=True)
    ]


def _blocks(videos: Mapping[str, tuple[str, int]], size: int) -> Sequence[storing.Block]:
    """Divide videos and their identities, in order, into blocks that are full at `size` bytes."""
    blocks: list[list[tuple[str, str]]] = []
    filled = size
    for name, (identity, num_bytes) in videos.items():
        if filled >= size:
            blocks.append([])
            filled = 0
        blocks[-1].append((name, identity))
        filled += num_bytes
    return blocks


def _stored(folder: Path, jobs: list[tuple], work: Work, beam: Any) -> Iterator[dict[str, Any]]:
    """Yield the notes of all blocks, first those that an earlier run wrote."""
    total = sum(len(block) for _, block, _ in jobs)
    with tqdm(total=total, desc="videos", unit="video", disable=None) as bar:
        left = []
        for job in jobs:
            if (note := _noted(folder / storing.key_of(*job[1:]))) is None:
                left.append(job)
            else:
                bar.update(len(note["videos"]))
                yield note
        if beam is not None:
            notes = beam.map(storing.write_videos, left, folder)
        else:
            write = functools.partial(storing.write_videos, folder)
            notes = checks.run_jobs(write, left, work.workers)
        for note in notes:
            write_json(_note(folder / note["key"]), note)
            bar.update(len(note["videos"]))
            yield note


def _note(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def _noted(shard: Path) -> dict[str, Any] | None:
    """Return the note of a shard that an earlier run finished with all of its videos usable."""
    if not _note(shard).exists():
        return None
    note = read_json(_note(shard))
    bad = any("error" in facts for facts in note["videos"].values())
    whole = shard.exists() and shard.stat().st_size == (note["shard"] or {}).get("bytes")
    return note if whole and not bad else None


def _name_videos(folder: Path, notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the shards of videos their names, remove all other files, write the index."""
    made = [note for note in notes if note["shard"]]
    entries, listed = [], []
    for number, (note, name) in enumerate(zip(made, store.store_names(len(made)), strict=True)):
        (folder / note["key"]).replace(folder / name)
        entries.append(note["shard"] | {"name": name})
        listed += [
            store.Entry(video, facts["digest"], number, facts["first"], facts["records"])
            for video, facts in note["videos"].items()
            if "error" not in facts
        ]
    named = {entry["name"] for entry in entries}
    for path in folder.iterdir():
        if path.name not in named:
            path.unlink()
    return store.write_store(folder, entries, listed)


def _record(pair: Pair, found: Mapping[str, dict[str, Any]]) -> PairRecord:
    check = found[pair.video]
    rejected = found[pair.rejected_video]["digest"] if pair.rejected_video else ""
    return PairRecord(
        **pair.texts(),
        video_digest=check["digest"],
        timestamps=tuple(check["timestamps"]),
        duration=check["duration"],
        fps=check["fps"],
        segment=pair.segment,
        provenance=pair.provenance,
        rejected_video_id=pair.rejected_video,
        rejected_video_digest=rejected,
    )


def _beam(options: str) -> Any:
    """Return `data.builder.Beam`, whose libraries take a second to import."""
    from tpo_jax.data.builder import Beam

    return Beam(options)


def _listed(
    pairs_file: str | Path | None,
    videos: Place,
    columns: Mapping[str, str] | None,
    excluded: Path | None,
) -> tuple[list[Pair], list[Rejection]]:
    """Return the pairs of a list, without those that are excluded, and its rejections."""
    if pairs_file is None:
        return [], []
    pairs, rejections = read_pairs(pairs_file, columns=columns, videos=videos)
    return pairs if excluded is None else _without(pairs, excluded), rejections


def _without(pairs: list[Pair], path: Path) -> list[Pair]:
    """Return the pairs whose id is not in the file."""
    try:
        ids = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--struck={path}: cannot be read: {reason}") from error
    if unknown := ids - {pair.id for pair in pairs}:
        raise InputError(f"--struck={path}: no pair has the id {min(unknown)!r}")
    return [pair for pair in pairs if pair.id not in ids]


def _finished(output: Path, inputs: str) -> dict[str, Any] | None:
    """Return the manifest if `output` was made of these inputs, None if it is absent or empty."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    advice = "remove it or name another --output"
    if not (output / shards.MANIFEST).is_file():
        raise InputError(f"{output}: exists and holds no {shards.MANIFEST}; {advice}")
    manifest = shards.open_shards(output).manifest
    if manifest.get("inputs") != inputs:
        raise InputError(f"{output}: was made of other pairs, videos or flags; {advice}")
    return manifest


def _manifest(pairs: Sequence[Pair], settings: Settings) -> dict[str, Any]:
    libraries = ("av", "array_record", "tensorflow_datasets")
    return {
        "pairs": len(pairs),
        "videos": len({v for pair in pairs for v in (pair.video_id, *pair.videos[1:])}),
        "rejected": 0,
        "repeated_ids": sum(bool(pair.repeated_id) for pair in pairs),
        "kinds": dict(sorted(Counter(pair.kind for pair in pairs).items())),
        "sampling": {"rule": settings.sampling, "num_frames": settings.num_frames},
        "frames": settings.frames,
        "proxy": settings.proxy,
        "shards": [],
        "store": {},
        "inputs": "",
        "versions": {
            "tpo_jax": tpo_jax.__version__,
            "opencv": cv2.__version__,
            **{name: importlib.metadata.version(name) for name in libraries},
        },
    }
