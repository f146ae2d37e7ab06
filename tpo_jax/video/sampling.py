"""Which frames of a video a model sees: the rules of the original code, by name.

| rule | frames |
|---|---|
| `uniform` | `num_frames`, evenly spaced, first and last included, repeated when short (LongVA) |
| `fps` | one a second, as `uniform` where that is more than `num_frames` (training, demo) |
| `two_fps` | two a second, at least four, evenly spaced and at most `num_frames` (Qwen3-VL) |
| `two_fps_pairs` | as `two_fps`, an even number, each at the start of its share (Qwen2.5-VL) |
| `nearest` | `num_frames` at most, evenly spaced, rounded (`nframes` of qwen-vl-utils) |
| `forced` | as `uniform`: what `force_sample=True` makes of one a second (LLaVA-Video inference) |

The originals give a frame's time as `index / average fps`; here it is the time at which the frame
is shown. The two agree for a constant frame rate.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.video.decode import Source, Video, VideoError, name_of, opened
from tpo_jax.video.packets import StoredVideo

Span = tuple[float, float]  # start and end in seconds, the end not included
Choice = Callable[[np.ndarray, float], np.ndarray]  # (timestamps in s, fps) -> indices

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# Directories of frames in the originals' training data hold two frames of every second.
DIRECTORY_FPS = 2.0


def _uniform(available: int, fps: float, num_frames: int) -> np.ndarray:
    return np.linspace(0, available - 1, num_frames, dtype=int)


def _one_per_second(available: int, fps: float, num_frames: int) -> np.ndarray:
    indices = np.arange(0, available, max(1, round(fps)))
    return indices if len(indices) <= num_frames else _uniform(available, fps, num_frames)


def _nearest(available: int, fps: float, num_frames: int) -> np.ndarray:
    return np.linspace(0, available - 1, min(num_frames, available)).round().astype(int)


def _two_per_second(available: int, fps: float, num_frames: int) -> np.ndarray:
    count = max(int(available / max(fps, 1e-3) * 2), 4)
    return _nearest(available, fps, min(count, num_frames))


def _pairs_of_two_per_second(available: int, fps: float, num_frames: int) -> np.ndarray:
    most = min(num_frames, available) // 2 * 2
    count = min(max(available / max(fps, 1e-3) * 2, 4), most) // 2 * 2
    count = max(1, int(count))  # of a video of one frame
    return (np.arange(count) * (available / count)).astype(np.float32).astype(int)


RULES: dict[str, Callable[[int, float, int], np.ndarray]] = {
    "uniform": _uniform,
    "fps": _one_per_second,
    "two_fps": _two_per_second,
    "two_fps_pairs": _pairs_of_two_per_second,
    "nearest": _nearest,
    "forced": _uniform,
}


def sample(rule: str, available: int, fps: float, num_frames: int) -> np.ndarray:
    """Return which of `available` frames to take: int64 `[n]`, ascending, `n <= num_frames`.

    Args:
        rule: one of `RULES`.
        available: frames of the video.
        fps: the video's average rate.
        num_frames: frames to take at most.

    Raises:
        InputError: an unknown rule, or `num_frames` below 1.
        ValueError: `available` is below 1.
    """
    if rule not in RULES:
        raise InputError(f"no sampling rule {rule!r}; there are {', '.join(RULES)}")
    if num_frames < 1:
        raise InputError(f"num_frames={num_frames} must be at least 1")
    if available < 1:
        raise ValueError("there is no frame to sample from")
    return RULES[rule](available, fps, num_frames).astype(np.int64)


def within(
    timestamps: np.ndarray, segment: Span | None = None, exclude: Span | None = None
) -> np.ndarray:
    """Return the indices, int64, of timestamps (seconds) inside `segment` and outside `exclude`."""
    kept = np.ones(len(timestamps), bool)
    if segment is not None:
        kept &= _inside(timestamps, segment)
    if exclude is not None:
        kept &= ~_inside(timestamps, exclude)
    return np.flatnonzero(kept)


def _inside(timestamps: np.ndarray, span: Span) -> np.ndarray:
    start, end = span
    if not start < end:
        raise ValueError(f"a segment must end after its start, unlike [{start}, {end}]")
    return (timestamps >= start) & (timestamps < end)


def rate_of(times: Sequence[float] | np.ndarray, duration: float) -> float:
    """Return how many frames were taken per second of what they stand for; 0.0 below two frames.

    Frames of a whole video stand for its duration, as `sampled_fps` of `transformers`. Frames that
    leave out three or more of their largest gaps are those of a part; each stands for their mean
    distance.

    Args:
        times: of the frames, seconds, in any order.
        duration: of the video, seconds.
    """
    if len(times) < 2:
        return 0.0
    ordered = np.sort(times)
    span, gap = ordered[-1] - ordered[0], np.diff(ordered).max()
    whole = duration - span < 3 * gap or not gap
    shown = duration if whole else span * len(times) / (len(times) - 1)
    return float(len(times) / shown) if shown > 0 else 0.0


class Sample(NamedTuple):
    """Frames of a video, decoded."""

    frames: np.ndarray  # uint8 [n, height, width, 3]
    timestamps: np.ndarray  # float64 [n], seconds from the first frame of the video
    duration: float  # of the whole video, seconds
    fps: float  # average rate of the whole video


def read_frames(
    source: Source,
    rule: str,
    num_frames: int,
    segment: Span | None = None,
    exclude: Span | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return frames, timestamps and duration of `sample_frames`."""
    return sample_frames(source, rule, num_frames, segment, exclude)[:3]


def sample_frames(
    source: Source,
    rule: str,
    num_frames: int,
    segment: Span | None = None,
    exclude: Span | None = None,
) -> Sample:
    """Sample and decode a video file, the bytes of one, a stored video, or a directory of images in
    order of name.

    With `segment` the rule sees only the frames shown in that span, with `exclude` only the others:
    the two sides of a localized pair.

    Raises:
        VideoError: The video cannot be read, or the spans leave no frame.
        ValueError: An argument is wrong.
    """

    return select_frames(source, _choice(rule, num_frames, segment, exclude, name_of(source)))


def sample_video(video: Video, rule: str, num_frames: int) -> Sample:
    """Sample and decode an open video; see `sample_frames`."""
    return _selected(video, _choice(rule, num_frames, None, None, video.reader.name))


def _choice(
    rule: str, num_frames: int, segment: Span | None, exclude: Span | None, name: str
) -> Choice:
    def choose(timestamps: np.ndarray, fps: float) -> np.ndarray:
        candidates = within(timestamps, segment, exclude)
        if not len(candidates):
            raise VideoError(name, f"no frame left by segment={segment}, exclude={exclude}")
        return candidates[sample(rule, len(candidates), fps, num_frames)]

    return choose


def frame_files(directory: Path) -> list[Path]:
    """Return the images of a directory that is a video, in their order."""
    return sorted(p for p in directory.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def select_frames(source: Source, choose: Choice) -> Sample:
    """Decode the frames at the indices `choose(timestamps of all frames, frames per second)`."""
    if not isinstance(source, bytes | StoredVideo) and Path(source).is_dir():
        files = frame_files(Path(source))
        timestamps = np.arange(len(files)) / DIRECTORY_FPS
        if not files:
            reason = f"no image ({', '.join(IMAGE_SUFFIXES)}) in this directory; of a folder of "
            reason += "videos or a store, name one video: FOLDER/VIDEO"
            raise VideoError(name_of(source), reason)
        indices = choose(timestamps, DIRECTORY_FPS)
        frames, duration = _read_images(files, indices), len(files) / DIRECTORY_FPS
        return Sample(frames, timestamps[indices], duration, DIRECTORY_FPS)

    with opened(source) as video:
        return _selected(video, choose)


def _selected(video: Video, choose: Choice) -> Sample:
    indices, frames = video.select(lambda video: choose(video.timestamps, video.info.fps))
    return Sample(frames, video.timestamps[indices], video.info.duration, video.info.fps)


def _read_images(files: list[Path], indices: np.ndarray) -> np.ndarray:
    frames = {}
    for index in np.unique(indices):
        try:
            with Image.open(files[index]) as image:
                frames[index] = np.asarray(image.convert("RGB"))
        except MemoryError:
            raise
        except Exception as error:  # broken files make the library raise nearly everything
            raise VideoError(files[index], f"not a readable image: {error}") from error
        first = min(frames)  # whatever the order they are shown in
        if frames[index].shape != frames[first].shape:
            height, width = frames[first].shape[:2]
            raise VideoError(files[index], f"not {width}x{height} like {files[first].name}")
    return np.stack([frames[index] for index in indices])
