"""Frames and images to padded patch sequences, as the published processors make them.

A frame of a batch is a pair of video frames: a header that holds its rows and columns of patches,
how many frames of the video it has and its position in time, then the patches, then zeros. An image
is paired with itself. So the model reads shapes and times from the pixels, and a frame of zeros
is an empty one.
"""

import math

import numpy as np
from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl.config import (
    MERGE,
    PAIR,
    Qwen25VLConfig,
    QwenVLConfig,
    TowerConfig,
    pairs,
)
from tpo_jax.models.pictures import Pictures

MOST_ASPECT = 200  # of the longer side to the shorter
UNKNOWN_RATE = 24.0  # frames per second if the times are unknown, as in `transformers`
TIME_BYTES = range(6, 10)  # of a header: the pair's position in time, little-endian uint32


def video_size(config: QwenVLConfig, num_frames: int, height: int, width: int) -> tuple[int, int]:
    """Return height and width that frames of a video are resized to, pixels.

    As `smart_resize` and `cap_pixels_per_frame` in `video_processing_qwen3_vl.py` or
    `video_processing_qwen2_vl.py` of `transformers`, with at most `frame_tokens` visual tokens.

    Raises:
        InputError: an aspect ratio that the processor refuses, or one with which a pair of frames
            would have more than `QwenVLConfig.pair_tokens`.
    """
    if isinstance(config, Qwen25VLConfig):
        most = config.frame_pixels(num_frames)
        size = _within(config, height, width, (config.video_pixels[0], most))
        _check_tokens(config, size, config.pair_tokens(num_frames))
        return size
    side, count = config.tower.token_side, max(num_frames, PAIR)
    if min(height, width) < side:
        scale = max(side / height, side / width)
        height, width = int(height * scale), int(width * scale)
    budget = config.video_pixels[0], count * config.frame_pixels(count)
    size = _fitted(height, width, side, budget, count)
    if count % PAIR and size[0] * size[1] > config.frame_tokens * side**2:
        # The processor counts an odd video a frame short, and would exceed the cap.
        size = _fitted(height, width, side, budget, count, rounded=count + 1)
    _check_tokens(config, size, config.pair_tokens(count))
    return size


def image_size(config: QwenVLConfig, height: int, width: int) -> tuple[int, int]:
    """Return height and width that an image is resized to, pixels.

    As `smart_resize` in `image_processing_qwen2_vl.py` of `transformers`, with at most
    `frame_tokens` visual tokens, even where the least pixels of the budget are more.

    Raises:
        InputError: as for `video_size`.
    """
    size = _within(config, height, width, config.image_pixels)
    _check_tokens(config, size, config.frame_tokens)
    return size


def _within(
    config: QwenVLConfig, height: int, width: int, budget: tuple[int, int]
) -> tuple[int, int]:
    """Return the sides of an image within least and most pixels and, as far as its aspect ratio
    allows, within `frame_tokens`.
    """
    side, (least, most) = config.tower.token_side, budget
    cap = config.frame_tokens * side**2
    size = _fitted(height, width, side, (min(least, cap), min(most, cap)), 1)
    return size if size[0] * size[1] <= cap else _fitted(height, width, side, (1, cap), 1)


def _fitted(
    height: int, width: int, side: int, budget: tuple[int, int], frames: int, rounded: int = 0
) -> tuple[int, int]:
    """Return sides that are multiples of `side`, near the aspect ratio, within a pixel budget of
    all frames, which count as `rounded` where that is given.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > MOST_ASPECT:
        raise InputError(
            f"{width}x{height} pixels: one side is {aspect:.0f} times the other, more than "
            f"{MOST_ASPECT}, which the processor refuses; crop the longer side"
        )
    least, most = budget
    counted = rounded or (1 if frames == 1 else round(frames / PAIR) * PAIR)
    sides = [round(x / side) * side for x in (height, width)]
    if counted * sides[0] * sides[1] > most:
        shrink = math.sqrt((rounded or frames) * height * width / most)
        sides = [max(side, math.floor(x / shrink / side) * side) for x in (height, width)]
    elif counted * sides[0] * sides[1] < least:
        grow = math.sqrt(least / (frames * height * width))
        sides = [math.ceil(x * grow / side) * side for x in (height, width)]
    return sides[0], sides[1]


def _check_tokens(config: QwenVLConfig, size: tuple[int, int], most: int) -> None:
    """Check that a frame or image of this size has at most `most` visual tokens."""
    tokens = size[0] * size[1] // config.tower.token_side**2
    if tokens > most:
        limit = f"frame_tokens={config.frame_tokens}"
        cure = f"convert with --frame_tokens={tokens}"
        if tokens <= config.frame_tokens:
            limit, cure = "the pixels of all frames together", "use fewer frames"
        raise InputError(
            f"resized to {size[1]}x{size[0]} pixels a frame has {tokens} visual tokens, more than "
            f"the {most} that {limit} allows; {cure}, or crop the longer side"
        )


def preprocess(
    frames: np.ndarray, config: QwenVLConfig, pad: bool = False, rate: float = 0.0
) -> np.ndarray:
    """Resize frames uint8 `[n, height, width, 3]` to pairs of them, uint8 `[F, 1 + N, pixels]`.

    The last frame of an odd video is doubled. `pad` has no effect: frames keep their aspect ratio.

    Args:
        rate: frames per second of video; 0: unknown.

    Raises:
        InputError: as `video_size`.
        ValueError: other shapes or dtypes.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 [n, height, width, 3], not {frames.dtype} {list(frames.shape)}"
        )
    if not len(frames):
        return np.zeros((0, *config.frame_shape), np.uint8)
    height, width = video_size(config, *frames.shape[:3])
    out = np.zeros((pairs(len(frames)), *config.frame_shape), np.uint8)
    times = time_positions(config.tower, len(out), rate or UNKNOWN_RATE)
    for i, target in enumerate(out):
        own = (frames[PAIR * i], frames[min(PAIR * i + 1, len(frames) - 1)])
        images = [Image.fromarray(frame).resize((width, height), _FILTER) for frame in own]
        both = np.stack([np.asarray(image) for image in images])
        _write(target, both, config.tower, min(PAIR, len(frames) - PAIR * i))
        target[0, TIME_BYTES] = times[i : i + 1].view(np.uint8)
    return out


def time_positions(tower: TowerConfig, count: int, rate: float) -> np.ndarray:
    """Return the positions in time of pairs since the first one, little-endian uint32 `[count]`.

    Computed in float32 and rounded down, as in `get_vision_position_ids` in
    `modeling_qwen2_5_vl.py` of `transformers`; zeros for a tower that has none.

    Args:
        count: number of pairs.
        rate: frames per second.
    """
    step = np.float32(tower.tokens_per_second) * np.float32(PAIR / rate)
    return (np.arange(count, dtype=np.float32) * step).astype("<u4")


_FILTER = Image.Resampling.BICUBIC


def picture(image: Image.Image, config: QwenVLConfig, several: bool = False) -> Pictures:
    """Return one RGB image as one view; `several` has no effect.

    Raises:
        InputError: as `image_size`.
    """
    height, width = image_size(config, image.height, image.width)
    view = np.zeros((1, *config.frame_shape), np.uint8)
    pixels = np.asarray(image.resize((width, height), _FILTER))
    _write(view[0], np.stack([pixels] * PAIR), config.tower, 1)
    tokens = int(grids(view)[0].prod()) // MERGE**2
    index, weight = np.zeros((tokens, 4), np.int32), np.zeros((tokens, 4), np.float32)
    index[:, 0], weight[:, 0] = 1 + np.arange(tokens), 1.0
    return Pictures(view, index, weight, (tokens,))


def _write(target: np.ndarray, both: np.ndarray, tower: TowerConfig, real: int) -> None:
    """Write header and patches of two frames `[2, height, width, 3]` into `[1 + N, pixels]`.

    Args:
        real: how many of the two the video has; if 1, the second is a copy of the first.
    """
    p = tower.patch_size
    rows, columns = both.shape[1] // p, both.shape[2] // p
    header = np.array([rows, columns, real], "<u2").view(np.uint8)
    target[0, : len(header)] = header
    x = both.reshape(PAIR, rows // MERGE, MERGE, p, columns // MERGE, MERGE, p, 3)
    x = x.transpose(1, 4, 2, 5, 7, 0, 3, 6)
    target[1 : 1 + rows * columns] = x.reshape(rows * columns, -1)


def grids(frames: np.ndarray) -> np.ndarray:
    """Return rows and columns of patches, int `[F, 2]`, of pairs uint8 `[F, 1 + N, pixels]`."""
    return np.ascontiguousarray(frames[:, 0, :4]).view("<u2").astype(np.int64)


def frames_in(frames: np.ndarray) -> int:
    """Return how many frames of a video the pairs, uint8 `[F, 1 + N, pixels]`, hold."""
    return int(np.ascontiguousarray(frames[:, 0, 4:6]).view("<u2").sum())
