"""Which videos can be used: every one is decoded as training would, before anything is written."""

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tpo_jax.data.pairs import Pair
from tpo_jax.errors import InputError
from tpo_jax.io.journal import Journal
from tpo_jax.io.paths import Place, fetched, version_of
from tpo_jax.video import sampling
from tpo_jax.video.decode import VideoError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of a video goes into a record: the rule and number of frames, and their encoding."""

    sampling: str = "uniform"
    num_frames: int = 32
    frames: str = "clip"  # the video file's bytes, or 'png' or 'jpeg' of the sampled frames


def hash_of(value: Any) -> str:
    """Return a hash of what JSON can hold, dataclasses included."""
    text = json.dumps(value, sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(video: Place) -> str:
    """Return a text that changes whenever the video does, without reading it; empty if absent."""
    try:
        files = sorted(video.iterdir()) if video.is_dir() else [video]
        return hash_of([(file.name, *version_of(file)) for file in files])
    except (OSError, ValueError):  # missing, or a name that no file can have
        return ""


def run_jobs(function: Callable, jobs: list[tuple], workers: int) -> Iterator[Any]:
    """Yield `function(*job)` for every job as it is done, by so many processes.

    Raises:
        InputError: A process died.
    """
    if min(workers, len(jobs)) <= 1:
        yield from (function(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context)
    try:
        futures: list[Future] = [pool.submit(function, *job) for job in jobs]
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool as error:
        advice = "run again to resume, with fewer --workers if memory was short"
        raise InputError(f"a worker process died; {advice}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def check_videos(
    root: Place,
    journal: Path,
    identities: Mapping[str, str],
    settings: Settings,
    map_jobs: Callable[[Callable, list[tuple]], Iterator[Any]],
) -> Iterator[tuple[str, dict]]:
    """Check videos; those that a journal holds as usable are not decoded again.

    Args:
        root: Folder of the videos.
        journal: File of the checks that were successful, appended to.
        identities: `identity` of every video by its path in `root`.
        settings: Which frames are decoded.
        map_jobs: Calls a function for every job, in any order: `run_jobs` or Apache Beam.

    Yields:
        (path in `root`, `timestamps`, `duration` and `fps`, or `error`).
    """
    keys = {
        name: hash_of([name, text, dataclasses.asdict(settings)])
        for name, text in identities.items()
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
        for name, check in map_jobs(check_video, jobs):
            bar.update()
            if "error" not in check:
                checked.add([{"key": keys[name], "check": check}])
            yield name, check


def check_video(name: str, path: Place, settings: Settings) -> tuple[str, dict]:
    """Decode the frames that training would; return `name` and what `check_videos` says of it."""
    try:
        with fetched(path) as here:
            if here.is_dir() and settings.frames == "clip":
                need = "a folder of frames needs --frames=png or --frames=jpeg"
                raise VideoError(name, need)
            clip = sampling.sample_frames(here, settings.sampling, settings.num_frames)
    except (VideoError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
        return name, {"error": f"{name}: {reason}"}
    return name, {
        "timestamps": clip.timestamps.tolist(),
        "duration": float(clip.duration),
        "fps": clip.fps,
    }


def complaint(pair: Pair, checks: Mapping[str, dict]) -> str | None:
    """Return why a pair cannot be used, None if it can."""
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
