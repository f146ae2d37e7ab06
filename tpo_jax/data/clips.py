"""From a position in the shards to decoded frames."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from tpo_jax.data.shards import Shards
from tpo_jax.errors import InputError
from tpo_jax.video import sampling
from tpo_jax.video.decode import VideoError


class Clip(NamedTuple):
    """What a model sees of a video."""

    frames: np.ndarray  # uint8 [n, height, width, 3]
    times: Sequence[float]  # of the frames, seconds
    duration: float  # of the video, seconds


class ClipCache:
    """Clips that stay in memory once they were read, those of the first videos that fill the room;
    the others are read anew each time.
    """

    def __init__(self, mebibytes: int):
        """With room for frames of so many MiB."""
        self._room, self._clips = mebibytes * 2**20, dict[str, Clip]()

    def get(self, video: str, read: Callable[[], Clip]) -> Clip:
        """The clip of a video; `read` is called if it is not there."""
        if (clip := self._clips.get(video)) is None:
            clip = read()
            # Threads that read the same video at once count it twice: some room stays unused.
            if clip.frames.nbytes <= self._room:
                self._room -= clip.frames.nbytes
                self._clips[video] = clip
        return clip


def read_clip(shards: Shards, position: int, rule: str, num_frames: int) -> Clip:
    """The video of the pair at a position, in its own height and width.

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
            return Clip(clip, record.timestamps, record.duration)
        clip, times, duration = sampling.read_frames(record.frames[0], rule, num_frames)
    except (VideoError, ValueError) as error:
        reason = error.reason if isinstance(error, VideoError) else error
        name = f"{shards.directory}: pair {record.id!r} ({record.video_id})"
        raise InputError(f"{name}: {reason}; run prepare again") from error
    return Clip(clip, times.tolist(), duration)


def _decode_image(encoded: bytes) -> np.ndarray:
    image = None
    if encoded:  # of nothing, OpenCV raises
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("a stored frame is no image")
    return image
