"""From a timeline to pixels and to an MP4 file.

The picture is drawn on a 16x16 canvas, a corner being 8x8, and doubled: 4:2:0 chroma subsampling
then loses nothing, and what remains of the lossy coding shifts a hue by a tenth of the distance
to its neighbour.
"""

import colorsys
import os
import pathlib

import cv2
import numpy as np

from tpo_jax.io.files import replacing_file
from tpo_jax.worlds.timeline import FPS, HUES, MIN_SECONDS, Event, Timeline, generator

CANVAS = 16
SIZE = 2 * CANVAS  # pixels per side of a frame
CORNER_AT = ((0, 0), (0, 8), (8, 0), (8, 8))  # row and column of each corner's 8x8 cell


def _bitmaps(rows: tuple[str, ...]) -> np.ndarray:
    """Parse bitmaps drawn side by side, one string per row, to bool `[bitmaps, rows, columns]`."""
    return np.array([[[c == "#" for c in cell] for cell in row.split()] for row in rows]).swapaxes(
        0, 1
    )


SHAPE_BITMAPS = _bitmaps(
    (  # circle, square, triangle, cross
        ".###. ##### ..#.. ..#..",
        "##.## ##### ..#.. ..#..",
        "#...# ##### .###. #####",
        "##.## ##### .###. ..#..",
        ".###. ##### ##### ..#..",
    )
)
DIGIT_BITMAPS = _bitmaps(
    (
        "### .#. ### ### #.# ### ### ### ### ###",
        "#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#",
        "#.# .#. ### ### ### ### ### ..# ### ###",
        "#.# .#. #.. ..# ..# ..# #.# ..# #.# ..#",
        "### ### ### ### ..# ### ### ..# ### ###",
    )
)
COLOURS = np.array([colorsys.hsv_to_rgb(i / len(HUES), 1.0, 0.95) for i in range(len(HUES))])


def _draw_event(frames: np.ndarray, event: Event) -> None:
    """Draw the object, a fading trail behind it, and the border it switches on."""
    y, x = CORNER_AT[event.corner]
    bitmap = SHAPE_BITMAPS[event.shape]
    horizontal, backwards = event.motion < 2, event.motion in (0, 2)  # left and up: towards zero
    middle = (event.start + event.end) // 2
    for first, last, step in ((event.start, middle, 0), (middle, event.end, 1)):
        along = 1 - step if backwards else 2 + step
        for behind, opacity in ((2, 0.45), (1, 0.7), (0, 1.0)):
            at = along + behind if backwards else along - behind
            dy, dx = (event.jitter, at) if horizontal else (at, event.jitter)
            patch = frames[first:last, y + dy : y + dy + 5, x + dx : x + dx + 5]
            patch[:, bitmap] += opacity * (COLOURS[event.hue] - patch[:, bitmap])
    if event.border is not None:
        edge = np.ones((CANVAS, CANVAS), bool)
        edge[1:-1, 1:-1] = False
        frames[event.end - MIN_SECONDS : event.end, edge] = COLOURS[event.border]


def render(timeline: Timeline, seed: int, index: int) -> np.ndarray:
    """Render the frames of a video, one per second: uint8 RGB `[seconds, SIZE, SIZE, 3]`.

    Grey noise, and a grey blob at a new place in every frame, carry no information.
    """
    rng = generator(seed, index, 2)
    n = timeline.seconds
    noise = rng.standard_normal((n, CANVAS, CANVAS, 1), dtype=np.float32) * np.float32(0.04)
    frames = np.full((n, CANVAS, CANVAS, 3), 0.5, np.float32)
    for frame, (y, x), grey in zip(
        frames, rng.integers(0, CANVAS - 2, (n, 2)), rng.uniform(0.2, 0.8, n), strict=True
    ):
        frame[y : y + 3, x : x + 3] = grey
    for event in timeline.events:
        _draw_event(frames, event)
    if needle := timeline.needle:
        y, x = CORNER_AT[needle.corner]
        frames[needle.start : needle.end] = 0.05
        cell = frames[needle.start : needle.end, y + 1 : y + 6, x + 2 : x + 5]
        cell[:, DIGIT_BITMAPS[needle.digit]] = COLOURS[needle.hue]
    canvas = (np.clip(frames + noise, 0, 1) * 255).astype(np.uint8)
    return canvas.repeat(2, axis=1).repeat(2, axis=2)


def write_mp4(path: str | os.PathLike, frames: np.ndarray, fps: float = FPS) -> None:
    """Write uint8 RGB `[n, height, width, 3]` as MPEG-4, under a temporary name first.

    Raises:
        OSError: the file cannot be written, or this OpenCV has no MPEG-4 encoder.
    """
    path = pathlib.Path(path)
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    size = (frames.shape[2], frames.shape[1])
    with replacing_file(path, ".mp4") as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, fourcc, fps, size)
        if not writer.isOpened():
            raise OSError(f"{path}: cannot be opened for writing as MPEG-4")
        for frame in frames:
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
        writer.release()
