"""Frames and still images to what a vision tower eats, with the pixels of the original processors
to the bit.

The originals resize with Pillow's bicubic filter (antialiased, rounded to uint8 after each of its
two passes), which no resize on the device reproduces; so that much happens on the host, and only
`(x / 255 - mean) / std` is left for the device.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.images import Layout, Pictures, assemble, layout


class Tower(Protocol):
    """What is needed of `models.config.TowerConfig`."""

    @property
    def kind(self) -> str:
        """'clip' or 'siglip'."""

    @property
    def image_size(self) -> int:
        """S, pixels."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per-channel mean of pixels in [0, 1]."""


def preprocess(frames: np.ndarray, tower: Tower, pad: bool = False) -> np.ndarray:
    """Resizes frames uint8 `[n, height, width, 3]` to uint8 `[n, S, S, 3]`, `S = tower.image_size`.

    `clip` scales the shorter side to S and cuts the sides off around the centre (HF
    `CLIPImageProcessor`); `siglip` squashes to a square (HF `SiglipImageProcessor`). With `pad`,
    frames are first widened to a square in the tower's mean colour, as in LongVA's needle test.

    Raises `ValueError` for other shapes or dtypes and for an unknown tower kind.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 [n, height, width, 3], not {frames.dtype} {list(frames.shape)}"
        )
    if tower.kind not in ("clip", "siglip"):
        raise ValueError(f"no image preprocessing for a {tower.kind!r} tower")
    side = tower.image_size
    colour = tuple(int(255 * mean) for mean in tower.mean)
    out = np.empty((len(frames), side, side, 3), np.uint8)
    for target, frame in zip(out, frames, strict=True):
        image = Image.fromarray(frame)
        if pad:
            image = _to_square(image, colour)
        if tower.kind == "clip":
            image = _centre_crop(_resize_shorter(image, side), side)
        else:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        target[:] = np.asarray(image)
    return out


def read_pictures(pictures: Sequence[str | Path | Image.Image], config: ModelConfig) -> Pictures:
    """Return image files or PIL images as one row of the model's input; none for text alone.

    As in the originals an animation is its first picture, transparency is dropped, and a rotation
    noted in the file is not applied.

    Raises:
        InputError: a file that is no readable image, or one that the model cannot take.
    """
    views: list[np.ndarray] = []
    layouts: list[Layout] = []
    for number, picture in enumerate(pictures):
        where = f"image {number}" if isinstance(picture, Image.Image) else picture
        try:
            with contextlib.ExitStack() as opened:
                if not isinstance(picture, Image.Image):
                    picture = opened.enter_context(Image.open(picture))
                image = picture.convert("RGB")
        except Exception as error:  # broken files make the library raise nearly everything
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise InputError(f"{where}: cannot be read as an image: {reason}") from error
        try:
            layouts.append(layout(config, *image.size))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        views.append(cut(image, layouts[-1], config))
    return assemble(views, layouts, config)


def cut(image: Image.Image, layout: Layout, config: ModelConfig) -> np.ndarray:
    """The views of an RGB image, uint8 `[n, S, S, 3]`: the whole where the layout has it, then the
    tiles in raster order.

    Tiles come from the image enlarged or shrunk to fit the grid, on black; beside them the whole is
    squashed (the originals' `process_anyres_image`).
    """
    side = config.tower.image_size
    if layout.grid is None:
        return preprocess(np.asarray(image)[None], config.tower, config.images.aspect == "pad")
    columns, rows = layout.grid
    width, height = columns * side, rows * side
    across, down = width / image.width, height / image.height
    if across < down:
        size = width, min(math.ceil(image.height * across), height)
    else:
        size = min(math.ceil(image.width * down), width), height
    canvas = Image.new("RGB", (width, height))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
    tiles = np.asarray(canvas).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    tiles = tiles.reshape(-1, side, side, 3)
    if not layout.whole:
        return tiles
    whole = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.concatenate([np.asarray(whole)[None], tiles])


def _resize_shorter(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if width <= height:
        size = side, int(side * height / width)
    else:
        size = int(side * width / height), side
    return image.resize(size, Image.Resampling.BICUBIC)


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
