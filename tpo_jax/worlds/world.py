"""Videos of a world on disk, with their questions."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Sequence

import cv2

from tpo_jax.io.processes import end_with_parent
from tpo_jax.worlds.questions import WorldQuestion, make_questions
from tpo_jax.worlds.render import render, write_mp4
from tpo_jax.worlds.timeline import FPS, make_timeline


@dataclasses.dataclass(frozen=True)
class WorldVideo:
    """A rendered video: its file, its length in seconds, and what can be asked about it."""

    path: str
    duration: float
    questions: tuple[WorldQuestion, ...]


def make_video(
    seed: int,
    index: int,
    seconds: int,
    path: str | os.PathLike,
    stride: int = 1,
    questions: int = 8,
) -> WorldVideo:
    """Render video `index` of the world of `seed` to an MP4 file at `path`.

    A frame lasts `stride` seconds; with more than `MIN_SECONDS` events would be missed. At most
    `questions` are asked.
    """
    timeline = make_timeline(seed, index, seconds)
    write_mp4(path, render(timeline, seed, index)[::stride], FPS / stride)
    asked = make_questions(timeline, seed, index, questions)
    return WorldVideo(str(path), seconds / FPS, tuple(asked))


def make_videos(
    directory: str | os.PathLike,
    seed: int,
    seconds: Sequence[int],
    workers: int = 2,
    strides: Sequence[int] | None = None,
    questions: int = 8,
) -> list[WorldVideo]:
    """Render one video per entry of `seconds`, as `00000.mp4`, `00001.mp4` and so on.

    The result does not depend on `workers`.

    Args:
        directory: made if absent.
        seed: of the world; training and evaluation use different ones.
        seconds: length of each video.
        strides: seconds that a frame of each video lasts; None: 1.
        questions: most per video.

    Raises:
        OSError: a file cannot be written.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{i:05d}.mp4" for i in range(len(seconds))]
    make = functools.partial(make_video, seed, questions=questions)
    all_arguments = (range(len(seconds)), seconds, paths, strides or [1] * len(seconds))
    if workers <= 1:
        return list(map(make, *all_arguments))
    context = multiprocessing.get_context("spawn")  # forking a process that runs JAX may deadlock
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        return list(pool.map(make, *all_arguments, chunksize=64))


def _begin_worker() -> None:
    end_with_parent()
    cv2.setNumThreads(1)
