"""A page on which people look through pairs and exclude bad ones."""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np

from tpo_jax.curation.units import Unit
from tpo_jax.io.files import replacing
from tpo_jax.video.decode import VideoError
from tpo_jax.video.sampling import read_frames

FRAMES, WIDTH = 8, 160  # shown of a video; pixels across
MOST = 200  # pairs on the page


class Frame(NamedTuple):
    """A picture on the page."""

    jpeg: str  # base64
    time: float  # seconds


class Pair(NamedTuple):
    """A pair on the page, with frames or why there are none."""

    unit: Unit
    frames: Sequence[Frame] = ()
    error: str = ""


def write_page(path: Path, units: Sequence[Unit], folder: Path, charts: Sequence[str]) -> None:
    """Write the page: per pair its frames, the segment on a timeline, both answers, the verdict.

    Args:
        path: Of the page; it needs no other file.
        units: The final units; at most `MOST` of them are shown, spread over all.
        charts: SVG charts of the list.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tpo_jax.curation", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    step = max(1, -(-len(units) // MOST))
    pairs = [_pair(unit, folder / unit.video) for unit in units[::step]]
    page = environment.get_template("review.html.jinja").stream(
        pairs=pairs, total=len(units), charts=charts, width=WIDTH
    )
    with replacing(path) as file:
        file.writelines(page)


def _pair(unit: Unit, video: Path) -> Pair:
    try:
        frames, times, _ = read_frames(video, "uniform", FRAMES)
    except VideoError as error:
        return Pair(unit, error=str(error))
    return Pair(unit, list(_pictures(frames, times)))


def _pictures(frames: np.ndarray, times: np.ndarray) -> Iterator[Frame]:
    for frame, time in zip(frames, times, strict=True):
        height = max(1, round(WIDTH * frame.shape[0] / frame.shape[1]))
        small = cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 70]
        data = cv2.imencode(".jpg", small[..., ::-1], quality)[1].tobytes()
        yield Frame(base64.b64encode(data).decode(), float(time))
