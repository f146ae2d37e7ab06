"""Preprocessing of frames and still images, equal to the original processors bit for bit.

The originals resize with Pillow's bicubic filter (antialiased, rounded to uint8 after each of its
two passes), which no resize on the device reproduces. So the host resizes, and only
`(x / 255 - mean) / std` is left for the device.
"""

import math

import numpy as np
from PIL import Image

from tpo_jax.families.llava_qwen.config import LlavaQwenConfig
from tpo_jax.families.llava_qwen.images import Tiling, tiling
from tpo_jax.models.pictures import Pictures


def preprocess(
    frames: np.ndarray, config: LlavaQwenConfig, pad: bool = False, rate: float = 0.0
) -> np.ndarray:
    """Resize frames uint8 `[n, height, width, 3]` to uint8 `[n, S, S, 3]`.

    `clip` scales the shorter side to S and cuts the sides off around the centre (HF
    `CLIPImageProcessor`); `siglip` squashes to a square (HF `SiglipImageProcessor`). With `pad`,
    frames are first widened to a square in the tower's mean colour, as in LongVA's needle test.

    Raises:
        ValueError: other shapes or dtypes.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 [n, height, width, 3], not {frames.dtype} {list(frames.shape)}"
        )
    tower, side = config.tower, config.tower.image_size
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


def picture(image: Image.Image, config: LlavaQwenConfig, several: bool = False) -> Pictures:
    """Return one RGB image, alone or one of `several`, cut into views, with the tokens its patches
    become.

    Raises:
        InputError: an image the model cannot take, or a config that is not supported.
    """
    laid = tiling(config, *image.size, several)
    tokens = (len(laid.patch_index),)
    return Pictures(cut(image, laid, config), laid.patch_index, laid.patch_weight, tokens)


def cut(image: Image.Image, tiling: Tiling, config: LlavaQwenConfig) -> np.ndarray:
    """Cut an RGB image into views, uint8 `[n, S, S, 3]`: the whole image if the tiling has it, then
    the tiles in raster order.

    Tiles are cut from the image scaled to fit the grid, on black. Beside tiles, the whole image is
    squashed to a square (the originals' `process_anyres_image`).
    """
    side = config.tower.image_size
    if tiling.grid is None:
        return preprocess(np.asarray(image)[None], config, tiling.pad)
    columns, rows = tiling.grid
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
    if not tiling.whole:
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
