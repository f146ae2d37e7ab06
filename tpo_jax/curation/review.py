"""A page on which people look through pairs and exclude bad ones."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tpo_jax.curation.units import Unit
from tpo_jax.data.folders import video_at
from tpo_jax.errors import InputError
from tpo_jax.io import templates
from tpo_jax.io.files import replacing, replacing_directory
from tpo_jax.video.decode import VideoError
from tpo_jax.video.sampling import read_frames

FRAMES, WIDTH = 8, 160  # shown of a video, side by side in one picture; pixels across of each
FIELDS = (
    *("id", "kind", "type", "manipulation", "verdict", "question", "reference"),
    *("chosen", "rejected", "duration", "span"),
)


def write_page(path: Path, units: Sequence[Unit], folder: Path, charts: Sequence[str]) -> None:
    """Write the page: per pair its frames, the segment on a timeline, both answers, the verdict.

    A browser shows a few pairs at a time and loads the pictures of those only.

    Args:
        path: Of the page; the pictures are in the directory beside it that has its name without
            suffix.
        units: The final units.
        folder: Of their videos.
        charts: SVG charts of the list.
    """
    videos = list(dict.fromkeys(unit.video for unit in units))
    numbers = {video: number for number, video in enumerate(videos)}
    with replacing_directory(path.with_suffix("")) as pictures:
        work = partial(_write_picture, folder, pictures)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = [*pool.map(work, videos, range(len(videos)))]
    pairs = [_shown(unit, numbers[unit.video], errors) for unit in units]
    template = templates.load("tpo_jax.curation", "pages/review.html.jinja")
    page = template.stream(pairs=pairs, charts=charts, pictures=path.stem)
    with replacing(path) as file:
        file.writelines(page)


def _shown(unit: Unit, number: int, errors: Sequence[str]) -> dict[str, Any]:
    """Return what the page says of a pair; see `_write_picture` for the rest."""
    fields = {name: getattr(unit, name) for name in FIELDS}
    return {**fields, "picture": f"{number}.jpg", "error": errors[number]}


def _write_picture(folder: Path, pictures: Path, video: str, number: int) -> str:
    """Write a video's frames as one picture; return why there is none, or an empty text."""
    try:
        frames, _, _ = read_frames(video_at(folder / video), "uniform", FRAMES)
    except (VideoError, InputError) as error:  # of the video, or of the store that holds it
        return str(error)
    height = max(1, round(WIDTH * frames.shape[1] / frames.shape[2]))
    small = [cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA) for frame in frames]
    quality = [cv2.IMWRITE_JPEG_QUALITY, 70]
    data = cv2.imencode(".jpg", np.concatenate(small, axis=1)[..., ::-1], quality)[1]
    (pictures / f"{number}.jpg").write_bytes(data.tobytes())
    return ""
