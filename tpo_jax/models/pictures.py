"""Still images of a row, ready for the model.

Whatever a family does with the patches of an image's views, every visual token is a weighted sum of
at most four of them: 2x2 pooling and a bilinear resize read four, everything else one. The host
computes which, so the model's program depends on the number of views and of tokens only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tpo_jax.models.config import ModelConfig

# The token table of a row begins with the newline vector.
NEWLINE = 0


class Pictures(NamedTuple):
    """The images of one row; none at all for a row of text."""

    views: np.ndarray  # uint8 [n, *frame_shape]
    patch_index: np.ndarray  # int32 [T, 4], 0: the newline vector, 1 + view * N + patch
    patch_weight: np.ndarray  # float32 [T, 4]
    tokens: tuple[int, ...]  # visual tokens of each image, T together


def joined(pictures: Sequence[Pictures], config: ModelConfig) -> Pictures:
    """Return several images as those of one row, their views numbered consecutively."""
    first = 0
    views = [np.zeros((0, *config.frame_shape), np.uint8)]
    index, weight = [np.zeros((0, 4), np.int32)], [np.zeros((0, 4), np.float32)]
    for one in pictures:
        shifted = one.patch_index + first * config.patches_per_frame
        index.append(np.where(one.patch_index == NEWLINE, NEWLINE, shifted).astype(np.int32))
        views.append(one.views)
        weight.append(one.patch_weight)
        first += len(one.views)
    tokens = tuple(n for one in pictures for n in one.tokens)
    return Pictures(np.concatenate(views), np.concatenate(index), np.concatenate(weight), tokens)


def round_views(n: int) -> int:
    """Return the next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    if n < 2:
        return n
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power
