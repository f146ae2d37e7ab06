"""Pairs and videos to a shard directory: check every video, then write every shard, then rename.

Work happens in `<output>.partial`: a journal of checked videos and finished shards, each beside a
note of what it was made of. A second run resumes there and repeats what a changed input affects.
"""

import dataclasses
import functools
import importlib.metadata
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import tpo_jax
from tpo_jax.data import checks, shards
from tpo_jax.data.checks import Settings
from tpo_jax.data.pairs import Pair, Rejection, read_pairs
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json, write_json, write_lines
from tpo_jax.io.paths import Place, fetched, is_folder, place
from tpo_jax.video import sampling

PAIRS_PER_SHARD = 64
REJECTED, JOURNAL = "rejected.jsonl", "checked.jsonl"


@dataclasses.dataclass(frozen=True)
class Work:
    """How the pairs are split up, and who does the work; no record depends on it."""

    num_shards: int = 0  # 0: one for every 64 pairs
    workers: int = 1  # processes; 1: only this one
    strict: bool = False  # stop at the first bad pair instead of listing it in `rejected.jsonl`
    beam: str | None = None  # options of an Apache Beam pipeline that does it; may be empty


def prepare(
    pairs_file: str | Path,
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
        pairs_file: A list for `read_pairs`.
        videos: The folder that `video` fields are relative to; may be in a bucket, `gs://…`.
        output: Must not exist, be empty, or be the result of the same inputs.
        settings: What of a video goes into a record.
        work: How it is done.
        columns: Of the list, as `read_pairs` takes them.
        excluded: File of ids, one a line, of pairs that are left out.

    Raises:
        InputError: The inputs give no pair, or a pair is bad and `work.strict` is set.
    """
    root, output = place(videos), Path(output)
    if not is_folder(root, "--videos="):
        raise InputError(f"--videos={root}: no such folder")
    beam = _beam(work.beam) if work.beam is not None else None
    pairs, rejections = read_pairs(pairs_file, columns=columns)
    if excluded is not None:
        pairs = _without(pairs, excluded)
    names = dict.fromkeys(v for p in pairs for v in p.videos)
    identities = {video: checks.identity(root / video) for video in names}
    settled = [dataclasses.asdict(settings), work.num_shards, pairs, rejections, identities]
    inputs = checks.hash_of(settled)
    if (done := _finished(output, inputs)) is not None:
        return done
    if work.strict and rejections:
        raise InputError(f"{rejections[0].where}: {rejections[0].reason}")
    partial = Path(os.path.abspath(output) + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{partial}: cannot be made: {error.strerror}") from error

    if beam is None:
        map_jobs: Callable = functools.partial(checks.run_jobs, workers=work.workers)
    else:
        map_jobs = functools.partial(beam.map, folder=partial)
    found: dict[str, dict] = {}
    for name, check in checks.check_videos(root, partial / JOURNAL, identities, settings, map_jobs):
        found[name] = check
        if work.strict and "error" in check:
            break
    good: list[Pair] = []
    for pair in pairs:
        if found.keys() >= set(pair.videos) and (reason := checks.complaint(pair, found)):
            rejections.append(Rejection(pair.where, reason, dataclasses.asdict(pair)))
        else:
            good.append(pair)
    if rejections and (work.strict or not good):
        shutil.rmtree(partial)
        some = (
            "" if work.strict else f"none of the {len(rejections)} pairs can be used, the first: "
        )
        raise InputError(f"{some}{rejections[0].where}: {rejections[0].reason}")

    count = min(work.num_shards or -(-len(good) // PAIRS_PER_SHARD), len(good))
    items = [(p, found[p.video], tuple(identities[v] for v in p.videos)) for p in good]
    blocks = [[items[i] for i in block] for block in np.array_split(np.arange(len(good)), count)]
    if beam is not None:
        notes = beam.write(
            [functools.partial(_records, root, settings, b) for b in blocks], partial
        )
    else:
        notes = _write_shards(partial, root, settings, blocks, work.workers)
    kept = {note["shard"]["name"] for note in notes}
    for path in partial.iterdir():
        if path.name not in kept:
            path.unlink()
    if rejections:
        write_lines(partial / REJECTED, map(dataclasses.asdict, rejections))
    manifest = _manifest(good, settings, notes) | {"rejected": len(rejections), "inputs": inputs}
    shards.write_metadata(partial, (entry for note in notes for entry in note["index"]), manifest)
    os.replace(partial, output)
    return manifest


def _beam(options: str) -> Any:
    """Return `data.builder.Beam`, whose libraries take a second to import."""
    from tpo_jax.data.builder import Beam

    return Beam(options)


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
    """Return the manifest if `output` is made of these inputs, None if it is free to write."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    advice = "remove it or name another --output"
    if not (output / shards.MANIFEST).is_file():
        raise InputError(f"{output}: exists and holds no {shards.MANIFEST}; {advice}")
    manifest = shards.open_shards(output).manifest
    if manifest.get("inputs") != inputs:
        raise InputError(f"{output}: was made of other pairs, videos or flags; {advice}")
    return manifest


def _manifest(pairs: Sequence[Pair], settings: Settings, notes: Sequence[dict]) -> dict[str, Any]:
    libraries = ("av", "array_record", "tensorflow_datasets")
    return {
        "pairs": len(pairs),
        "videos": len({v for pair in pairs for v in (pair.video_id, *pair.videos[1:])}),
        "rejected": 0,
        "kinds": dict(sorted(Counter(pair.kind for pair in pairs).items())),
        "sampling": {"rule": settings.sampling, "num_frames": settings.num_frames},
        "frames": settings.frames,
        "shards": [note["shard"] for note in notes],
        "inputs": "",
        "versions": {
            "tpo_jax": tpo_jax.__version__,
            "opencv": cv2.__version__,
            **{name: importlib.metadata.version(name) for name in libraries},
        },
    }


Item = tuple[Pair, dict, tuple[str, ...]]  # with the check of its video, identities of its videos


def _write_shards(
    folder: Path, root: Place, settings: Settings, blocks: list[list[Item]], workers: int
) -> list[dict]:
    """Write one shard for every block; return their notes in order."""
    names = shards.shard_names(len(blocks))
    jobs = [(folder / n, root, settings, block) for n, block in zip(names, blocks, strict=True)]
    total = sum(map(len, blocks))
    with tqdm(total=total, desc="pairs", unit="pair", disable=None) as bar:
        for note in checks.run_jobs(_write_shard, jobs, workers):
            bar.update(note["shard"]["pairs"])
    return [read_json(_note(folder / name)) for name in names]


def _note(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def _write_shard(path: Path, root: Place, settings: Settings, items: Sequence[Item]) -> dict:
    """Write one shard and the note of what it was made of, unless they are there already."""
    made_of = checks.hash_of([dataclasses.asdict(settings), items])
    if path.exists() and _note(path).exists():
        note = read_json(_note(path))
        if note["made_of"] == made_of and note["shard"]["bytes"] == path.stat().st_size:
            return note
    index = []

    def noted() -> Iterator[PairRecord]:
        for record in _records(root, settings, items):
            index.append(record.to_json())
            yield record

    note = {"made_of": made_of, "shard": shards.write_shard(path, noted()), "index": index}
    write_json(_note(path), note)
    return note


def _records(root: Place, settings: Settings, items: Sequence[Item]) -> Iterator[PairRecord]:
    read: tuple[tuple[str, ...], tuple[bytes, ...]] = ((), ())
    for pair, check, identities in items:
        sources = [root / video for video in pair.videos]
        for source, identity in zip(sources, identities, strict=True):
            if checks.identity(source) != identity:
                raise InputError(f"{source}: changed while it was read; run again")
        if read[0] != pair.videos:
            read = pair.videos, tuple(f for source in sources for f in _payload(source, settings))
        yield PairRecord(
            **pair.texts(),
            frame_encoding=settings.frames,
            frames=read[1],
            timestamps=tuple(check["timestamps"]),
            duration=check["duration"],
            fps=check["fps"],
            segment=pair.segment,
            provenance=pair.provenance,
            rejected_video_id=pair.rejected_video,
        )


def _payload(path: Place, settings: Settings) -> tuple[bytes, ...]:
    if settings.frames == "clip":
        return (path.read_bytes(),)
    with fetched(path) as here:
        frames = sampling.read_frames(here, settings.sampling, settings.num_frames)[0]
    images = (cv2.imencode(f".{settings.frames}", frame[..., ::-1]) for frame in frames)
    return tuple(image.tobytes() for _, image in images)
