"""Frames to what a vision tower eats, with the pixels of the original processors to the bit.

The originals resize with Pillow's bicubic filter (antialiased, rounded to uint8 after each of its
two passes), which no resize on the device reproduces; so that much happens on the host, and only
`(x / 255 - mean) / std` is left for the device.
"""

from typing import Protocol

import numpy as np
from PIL import Image


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
