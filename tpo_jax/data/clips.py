"""From a pair of the shards to decoded frames."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from tpo_jax.data.records import PairRecord, Span
from tpo_jax.data.shards import Shards
from tpo_jax.errors import InputError
from tpo_jax.video import sampling


class Clip(NamedTuple):
    """What a model sees of a video."""

    frames: np.ndarray  # uint8 [n, height, width, 3]
    times: Sequence[float]  # of the frames, seconds
    duration: float  # of the video, seconds


class ClipCache:
    """A cache of clips, bounded in memory; clips that do not fit are read each time."""

    def __init__(self, mebibytes: int):
        """Keep at most `mebibytes` MiB of frames."""
        self._free, self._clips = mebibytes * 2**20, dict[Hashable, Clip]()

    def get(self, video: Hashable, read: Callable[[], Clip]) -> Clip:
        """Return the clip of `video`, a key that may also tell what is sampled of the video; call
        `read` if the clip is not in the cache.
        """
        if (clip := self._clips.get(video)) is None:
            clip = read()
            # Threads that read the same video at once count it twice: some memory stays unused.
            if clip.frames.nbytes <= self._free:
                self._free -= clip.frames.nbytes
                self._clips[video] = clip
        return clip


def read_clip(
    shards: Shards, pair: PairRecord, rule: str, num_frames: int, segment: Span | None = None
) -> Clip:
    """Read the video of a pair, in its own height and width.

    Args:
        shards: The shards of the pair.
        pair: Names the video by its hash.
        rule: How frames are sampled from a stored video; stored frames are taken as they are.
        num_frames: How many are sampled from a stored video.
        segment: Of a stored video, the only part that frames are sampled from.

    Raises:
        InputError: A record is damaged or the video cannot be decoded; names file or pair.
    """
    try:
        if shards.manifest["frames"] != "clip":
            images = shards.videos.images(pair.video_digest)
            clip = np.stack([_decode_image(image) for image in images])
            return Clip(clip, pair.timestamps, pair.duration)
        video = shards.videos.video(pair.video_digest)
        clip, times, duration = sampling.read_frames(video, rule, num_frames, segment)
    except ValueError as error:
        reason = str(error)
        if not isinstance(error, InputError):
            reason = f"{getattr(error, 'reason', error)}; run prepare again"
        raise InputError(f"{place_of(shards, pair)}: {reason}") from error
    return Clip(clip, times.tolist(), duration)


def place_of(shards: Shards, pair: PairRecord) -> str:
    """Return the beginning of messages about a pair: directory, id and video."""
    return f"{shards.directory}: pair {pair.id!r} ({pair.video_id})"


def _decode_image(encoded: bytes) -> np.ndarray:
    image = None
    if encoded:  # OpenCV raises for an empty buffer
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("a stored frame is not an image")
    return image
