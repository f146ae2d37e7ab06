"""From a position in the shards to decoded frames."""

from collections.abc import Sequence

import cv2
import numpy as np

from tpo_jax.data import sampling
from tpo_jax.data.shards import Shards
from tpo_jax.data.video import VideoError
from tpo_jax.errors import InputError


def read_clip(
    shards: Shards, position: int, rule: str, num_frames: int
) -> tuple[np.ndarray, Sequence[float], float]:
    """Frames uint8 `[n, height, width, 3]` of the pair at a position, their times and the duration
    in seconds.

    Args:
        shards: of the pair.
        position: in the shards.
        rule: how frames are sampled from a stored clip; stored frames are taken as they are.
        num_frames: likewise.

    Raises:
        InputError: the record is damaged or its video cannot be decoded; names file or pair.
    """
    record = shards[position]
    try:
        if record.frame_encoding != "clip":
            clip = np.stack([_decode_image(frame) for frame in record.frames])
            return clip, record.timestamps, record.duration
        clip, times, duration = sampling.read_frames(record.frames[0], rule, num_frames)
    except (VideoError, ValueError) as error:
        reason = error.reason if isinstance(error, VideoError) else error
        name = f"{shards.directory}: pair {record.id!r} ({record.video_id})"
        raise InputError(f"{name}: {reason}; run prepare again") from error
    return clip, times.tolist(), duration


def _decode_image(encoded: bytes) -> np.ndarray:
    image = None
    if encoded:  # of nothing, OpenCV raises
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("a stored frame is no image")
    return image
