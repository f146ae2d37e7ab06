"""Settings of stored videos, jobs run by several processes, and checks of a pair's videos."""

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tpo_jax.data.pairs import Pair
from tpo_jax.errors import InputError
from tpo_jax.io.processes import end_with_parent


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is stored of a video: the rule and number of frames, and their encoding."""

    sampling: str = "uniform"
    num_frames: int = 32
    frames: str = "clip"  # the video's packets, or 'png' or 'jpeg' of the sampled frames
    proxy: int = 0  # pixels of the shorter side of a second encoding that replaces it; 0: none


def run_jobs(function: Callable, jobs: list[tuple], workers: int) -> Iterator[Any]:
    """Yield `function(*job)` of every job as it completes, run by `workers` processes.

    Raises:
        InputError: A process died.
    """
    if min(workers, len(jobs)) <= 1:
        yield from (function(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, end_with_parent)
    try:
        futures: list[Future] = [pool.submit(function, *job) for job in jobs]
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool as error:
        advice = "run again to resume, with fewer --workers if memory was short"
        raise InputError(f"a worker process died; {advice}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def complaint(pair: Pair, checks: Mapping[str, dict]) -> str | None:
    """Return why a pair cannot be used, None if it can, or where not all of its videos are checked
    and nothing is wrong with those that are.
    """
    for name in pair.videos:
        if "error" in checks.get(name, ()):
            return checks[name]["error"]
    if not checks.keys() >= set(pair.videos):
        return None
    check = checks[pair.video]
    if pair.rejected_video and checks[pair.rejected_video]["digest"] == check["digest"]:
        return f"{pair.video} and {pair.rejected_video}, its two videos, are the same video"
    duration = check["duration"]
    # A frame lasts until the next one, and times are rounded, so one frame too many is accepted.
    late = pair.segment and pair.segment[1] > duration + 1 / check["fps"]
    if pair.segment and (late or pair.segment[0] >= duration):
        verb, at = ("starts", pair.segment[0]), ("ends", pair.segment[1])
        name, time = verb if pair.segment[0] >= duration else at
        return f"segment {name} at {time} s of a video of {duration:.2f} s"
    return None
