"""Geometry of still images: into which views one is cut, and which patches its tokens are made of.

Both are functions of the image's size alone, so the length of a prompt is known without the model.
The original: `process_anyres_image` in `llava/mm_utils.py` of LongVA and of LLaVA-NeXT, and
`prepare_inputs_labels_for_multimodal` in `llava/model/llava_arch.py`.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import LlavaQwenConfig
from tpo_jax.models.pictures import NEWLINE

MERGES = ("unires", "spatial_unpad", "flat")


class Tiling(NamedTuple):
    """How an image is cut and put together again."""

    grid: tuple[int, int] | None  # columns and rows of tiles; None: the whole image is the view
    whole: bool  # whether the whole image is a view, before the tiles
    pad: bool  # whether that view is padded to a square
    patch_index: np.ndarray  # int32 [T, 4], 0: the newline vector, 1 + view * N + patch
    patch_weight: np.ndarray  # float32 [T, 4]


def tiling(config: LlavaQwenConfig, width: int, height: int, several: bool = False) -> Tiling:
    """Return the tiling of an image of `width` x `height` pixels, alone or one of `several`.

    Raises:
        InputError: the checkpoint's `config.json` asks for something that is not supported.
    """
    images, side = config.images, config.tower.image_size
    aspect = images.several if several and images.several else images.aspect
    if images.merge not in MERGES:
        raise InputError(
            f"mm_patch_merge_type={images.merge!r}: images need one of {', '.join(MERGES)}"
        )
    if images.merge == "spatial_unpad" and not config.has_newline:
        raise InputError("mm_newline_position=no_token: images need the newline vector")
    if not (anyres := re.fullmatch(r"anyres(?:_max_(\d+))?", aspect)):
        if aspect not in ("pad", "square"):
            raise InputError(
                f"image_aspect_ratio={aspect!r} must be anyres, anyres_max_N, pad or square"
            )
        patches = 1 + np.arange(config.tower.grid**2)
        ends = [NEWLINE] if images.merge == "spatial_unpad" else []
        return Tiling(None, True, aspect == "pad", *_single(np.append(patches, ends)))
    if not images.pinpoints:
        raise InputError("image_grid_pinpoints: none")
    for pixels in images.pinpoints:
        if any(x % side or x < 1 for x in pixels):
            raise InputError(f"image_grid_pinpoints: {pixels} is no multiple of the tower's {side}")
    columns, rows = (x // side for x in best_resolution(width, height, images.pinpoints))
    grid, g = (columns, rows), config.tower.grid
    if images.merge == "unires":
        return Tiling(grid, False, False, *_pooled(g, columns * rows))
    if images.merge == "flat":
        return Tiling(grid, True, False, *_single(1 + np.arange((1 + columns * rows) * g * g)))
    most = int(anyres[1]) * g * g if anyres[1] else 0
    whole, tiles = _single(1 + np.arange(g * g)), _unpadded(g, grid, (width, height), most)
    return Tiling(grid, True, False, *map(np.concatenate, zip(whole, tiles, strict=True)))


def best_resolution(
    width: int, height: int, pinpoints: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Return the (width, height) of `pinpoints` that keeps most of an image's pixels.

    Ties go to the size with the fewest unused pixels, then to the first in the list. An
    image so narrow that its shorter side shrinks below one pixel everywhere keeps none and gets the
    smallest, as in `select_best_resolution` of LLaVA's `mm_utils.py`.
    """

    def merits(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[0] / width, size[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - size[0] * size[1]

    return max(pinpoints, key=merits)


def _single(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens that are one patch each."""
    index = np.zeros((len(patches), 4), np.int32)
    index[:, 0] = patches
    weight = np.zeros(index.shape, np.float32)
    weight[:, 0] = 1
    return index, weight


def _pooled(g: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every view pooled 2x2, view after view; an odd last row and column are dropped."""
    view, row, column = np.ix_(range(views), range(0, g - 1, 2), range(0, g - 1, 2))
    first = (1 + view * g * g + row * g + column).reshape(-1, 1)
    index = (first + np.array([0, 1, g, g + 1])).astype(np.int32)
    return index, np.full(index.shape, 0.25, np.float32)


def _unpadded(
    g: int, grid: tuple[int, int], size: tuple[int, int], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles as one grid without padding, a newline after every row.

    A grid with over a fifth more than `most` patches is shrunk to about `most`; 0: no limit.
    """
    (columns, rows), (width, height) = grid, size
    row, column = np.ix_(range(rows * g), range(columns * g))
    tile = 1 + row // g * columns + column // g
    patches = 1 + tile * g * g + row % g * g + column % g
    h, w = patches.shape
    if width / height > w / h:
        cut = (h - int(height * (w / width))) // 2
        patches = patches[cut : h - cut]
    else:
        cut = (w - int(width * (h / height))) // 2
        patches = patches[:, cut : w - cut]
    h, w = patches.shape
    times = math.sqrt(h * w / most) if most else 1.0
    if times <= 1.1:
        return _single(np.pad(patches, ((0, 0), (0, 1)), constant_values=NEWLINE).reshape(-1))
    # Rows and columns of the source, and how much of the second is taken.
    (r, s), (c, t) = (_bilinear(n, int(n // times)) for n in (h, w))
    below, right = np.minimum(r + 1, h - 1), np.minimum(c + 1, w - 1)
    index = np.stack([patches[np.ix_(y, x)] for y in (r, below) for x in (c, right)], axis=-1)
    weight = np.stack([np.outer(y, x) for y in (1 - s, s) for x in (1 - t, t)], axis=-1)
    end = np.broadcast_to(np.array([NEWLINE] * 4), (len(index), 1, 4))
    index = np.concatenate([index, end], axis=1).astype(np.int32).reshape(-1, 4)
    once = np.broadcast_to(np.array([1, 0, 0, 0], np.float32), (len(weight), 1, 4))
    return index, np.concatenate([weight, once], axis=1).reshape(-1, 4)


def _bilinear(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first source index that each target index reads, and the weight of the next one.

    Half-pixel centres, no antialiasing, in the float32 arithmetic of PyTorch.
    """
    scale = np.float32(source) / np.float32(target)
    at = np.maximum(
        scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0
    )
    low = np.floor(at).astype(np.int64)
    return low, (at - low).astype(np.float32)
