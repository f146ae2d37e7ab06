"""Pairs and videos to a shard directory: check every video, then write every shard, then rename.

Work happens in `<output>.partial`: a journal of checked videos and finished shards, each beside a
note of what it was made of. A second run continues there and redoes what a changed input touches.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import tpo_jax
from tpo_jax.data import shards
from tpo_jax.data.pairs import Pair, Rejection, read_pairs
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json, write_json, write_lines
from tpo_jax.io.journal import Journal
from tpo_jax.io.paths import Place, fetched, is_folder, place, version_of
from tpo_jax.video import decode as video
from tpo_jax.video import sampling

PAIRS_PER_SHARD = 64
REJECTED, JOURNAL = "rejected.jsonl", "checked.jsonl"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of a video goes into a record: the rule and number of frames, and their encoding."""

    sampling: str = "uniform"
    num_frames: int = 32
    frames: str = "clip"  # the video file's bytes, or 'png' or 'jpeg' of the sampled frames


def prepare(
    pairs_file: str | Path,
    videos: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    num_shards: int = 0,
    workers: int = 1,
    strict: bool = False,
    columns: Mapping[str, str] | None = None,
    struck: str | Path | None = None,
    beam: str | None = None,
) -> dict[str, Any]:
    """Writes the directory `output` and returns its manifest; an unfinished run is continued.

    Args:
        pairs_file: a list for `read_pairs`.
        videos: the folder that `video` fields are relative to; may be in a bucket, `gs://…`.
        output: must not exist, be empty, or be the result of the same inputs.
        settings: what of a video goes into a record.
        num_shards: 0: one for every 64 pairs.
        workers: processes; 1: only this one.
        strict: stop at the first bad pair instead of listing it in `rejected.jsonl`.
        columns: of the list, as `read_pairs` takes them.
        struck: file of ids, one per line, of pairs that are left out.
        beam: options of an Apache Beam pipeline that does the work in place of this machine's
            processes; may be empty. None: no Beam.

    Raises:
        InputError: nothing can be made of the inputs, or a pair is bad and `strict` is set.
    """
    root, output = place(videos), Path(output)
    if not is_folder(root):
        raise InputError(f"--videos={root}: no such folder")
    pool = _beam(beam) if beam is not None else None
    pairs, rejections = read_pairs(pairs_file, columns=columns)
    if struck is not None:
        pairs = _without(pairs, Path(struck))
    identities = {v: _identity(root / v) for v in dict.fromkeys(v for p in pairs for v in p.videos)}
    inputs = _hash([dataclasses.asdict(settings), num_shards, pairs, rejections, identities])
    if (done := _finished(output, inputs)) is not None:
        return done
    if strict and rejections:
        raise InputError(f"{rejections[0].where}: {rejections[0].reason}")
    partial = Path(os.path.abspath(output) + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{partial}: cannot be made: {error.strerror}") from error
    checks: dict[str, dict] = {}
    for name, check in _check_videos(root, partial / JOURNAL, identities, settings, workers, pool):
        checks[name] = check
        if strict and "error" in check:
            break
    good: list[Pair] = []
    for pair in pairs:
        if checks.keys() >= set(pair.videos) and (reason := _complaint(pair, checks)):
            rejections.append(Rejection(pair.where, reason, dataclasses.asdict(pair)))
        else:
            good.append(pair)
    if rejections and (strict or not good):
        shutil.rmtree(partial)
        some = "" if strict else f"none of the {len(rejections)} pairs can be used, the first: "
        raise InputError(f"{some}{rejections[0].where}: {rejections[0].reason}")
    count = min(num_shards or -(-len(good) // PAIRS_PER_SHARD), len(good))
    names = shards.shard_names(count)
    blocks = [[good[i] for i in block] for block in np.array_split(np.arange(len(good)), count)]
    items = [
        [(p, checks[p.video], tuple(identities[v] for v in p.videos)) for p in block]
        for block in blocks
    ]
    if pool is not None:
        notes = pool.write([functools.partial(_records, root, settings, i) for i in items], partial)
    else:
        jobs = [(partial / n, root, settings, i) for n, i in zip(names, items, strict=True)]
        with tqdm(total=len(good), desc="pairs", unit="pair", disable=None) as bar:
            for note in _run(_write_shard, jobs, workers):
                bar.update(note["shard"]["pairs"])
        notes = [read_json(_note(partial / name)) for name in names]
    manifest = {
        "pairs": len(good),
        "videos": len({v for pair in good for v in (pair.video_id, *pair.videos[1:])}),
        "rejected": len(rejections),
        "kinds": dict(sorted(Counter(pair.kind for pair in good).items())),
        "sampling": {"rule": settings.sampling, "num_frames": settings.num_frames},
        "frames": settings.frames,
        "shards": [note["shard"] for note in notes],
        "inputs": inputs,
        "versions": {
            "tpo_jax": tpo_jax.__version__,
            "opencv": cv2.__version__,
            **{n: importlib.metadata.version(n) for n in ("array_record", "tensorflow_datasets")},
        },
    }
    for path in partial.iterdir():
        if path.name not in names:
            path.unlink()
    if rejections:
        write_lines(partial / REJECTED, map(dataclasses.asdict, rejections))
    shards.write_metadata(partial, (entry for note in notes for entry in note["index"]), manifest)
    os.replace(partial, output)
    return manifest


def _beam(options: str):
    """`data.builder.Beam`, whose libraries take a second to import."""
    from tpo_jax.data.builder import Beam

    return Beam(options)


def _without(pairs: list[Pair], path: Path) -> list[Pair]:
    """The pairs whose id is not in the file."""
    try:
        ids = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--struck={path}: cannot be read: {reason}") from error
    if unknown := ids - {pair.id for pair in pairs}:
        raise InputError(f"--struck={path}: no pair has the id {min(unknown)!r}")
    return [pair for pair in pairs if pair.id not in ids]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(path: Place) -> str:
    """Changes whenever the video does, without reading it."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return _hash([(file.name, *version_of(file)) for file in files])
    except (OSError, ValueError):  # missing, or a name that no file can have
        return ""


def _finished(output: Path, inputs: str) -> dict[str, Any] | None:
    """The manifest if `output` is already made of these inputs, None if it is free to write."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    advice = "remove it or name another --output"
    if not (output / shards.MANIFEST).is_file():
        raise InputError(f"{output}: exists and holds no {shards.MANIFEST}; {advice}")
    manifest = shards.open_shards(output).manifest
    if manifest.get("inputs") != inputs:
        raise InputError(f"{output}: was made of other pairs, videos or flags; {advice}")
    return manifest


def _run(function: Callable, jobs: list[tuple], workers: int) -> Iterator[Any]:
    """Results as they come; in this process if there is nothing to share out."""
    if min(workers, len(jobs)) <= 1:
        yield from (function(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context)
    try:
        futures: list[Future] = [pool.submit(function, *job) for job in jobs]
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool as error:
        advice = "run again to continue, with fewer --workers if memory was short"
        raise InputError(f"a worker process died; {advice}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check_videos(
    root: Place, journal: Path, identities: dict[str, str], settings: Settings, workers: int, pool
) -> Iterator[tuple[str, dict]]:
    """(video, `timestamps`, `duration` and `fps`, or `error`); what worked is not redone."""
    keys = {
        name: _hash([name, identity, dataclasses.asdict(settings)])
        for name, identity in identities.items()
    }
    with (
        Journal(journal, {"format": 1}, "remove it") as checked,
        tqdm(total=len(keys), desc="videos", unit="video", disable=None) as bar,
    ):
        known = {line["key"]: line["check"] for _, line in checked.lines}
        done = [(name, known[key]) for name, key in keys.items() if key in known]
        bar.update(len(done))
        yield from done
        jobs = [(name, root / name, settings) for name, key in keys.items() if key not in known]
        results = _run(_check_video, jobs, workers)
        if pool is not None:
            results = pool.map(_check_video, jobs, journal.parent)
        for name, check in results:
            bar.update()
            if "error" not in check:
                checked.add([{"key": keys[name], "check": check}])
            yield name, check


def _check_video(name: str, path: Place, settings: Settings) -> tuple[str, dict]:
    """Really decodes the frames that training would, so that no bad video is found out later."""
    try:
        with fetched(path) as here:
            if here.is_dir() and settings.frames == "clip":
                need = "a folder of frames needs --frames=png or --frames=jpeg"
                raise video.VideoError(name, need)
            clip = sampling.read_frames(here, settings.sampling, settings.num_frames)
            fps = sampling.DIRECTORY_FPS if here.is_dir() else video.probe(here).fps
    except (video.VideoError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
        return name, {"error": f"{name}: {reason}"}
    return name, {"timestamps": clip[1].tolist(), "duration": float(clip[2]), "fps": fps}


def _complaint(pair: Pair, checks: Mapping[str, dict]) -> str | None:
    for name in pair.videos:
        if "error" in checks[name]:
            return checks[name]["error"]
    check = checks[pair.video]
    # A frame lasts until the next one, and times are rounded: one frame's time is no complaint.
    if pair.segment and pair.segment[1] > check["duration"] + 1 / check["fps"]:
        verb, at = ("starts", pair.segment[0]), ("ends", pair.segment[1])
        name, time = verb if pair.segment[0] >= check["duration"] else at
        return f"segment {name} at {time} s of a video of {check['duration']:.2f} s"
    return None


def _note(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


Item = tuple[Pair, dict, tuple[str, ...]]  # with the check of its video, identities of its videos


def _write_shard(path: Path, root: Place, settings: Settings, items: Sequence[Item]) -> dict:
    """One shard and the note of what it was made of; nothing if they are there already."""
    made_of = _hash([dataclasses.asdict(settings), items])
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
            if _identity(source) != identity:
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
