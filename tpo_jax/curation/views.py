"""Views: which frames of a video a model sees, one small pure function per manipulation.

| view | frames |
|---|---|
| `full` | evenly spaced over the whole video |
| `segment` | evenly spaced inside the segment: localized, kept |
| `rest` | evenly spaced over everything but the segment: localized, removed |
| `irrelevant` | random ones of everything but the segment, in order |
| `sparse:r` | every r-th of `full`: comprehensive |
| `drop:r` | `full` without a random half of its r equal parts |
| `shuffle:r` | the r equal parts of `full` in random order |
| `reverse:r` | the r equal parts of `full` in reverse order |
| `other` | `full`, of another video |

`segment`/`rest` and `full`/`sparse` are the paper's (section 3.1; v3 calls them irrelevant and
incomplete). The others are from later methods (TEMPLE, arXiv 2503.16929; RRPO, arXiv 2504.12083) at
magnitudes 2, 4, 8 and 16: more parts destroy more of the order, which is easier to tell apart.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from tpo_jax.video.sampling import sample, within

MAGNITUDES = (2, 4, 8, 16)
Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class View:
    """A manipulation with all it depends on; equal views of a video show equal frames.

    Attributes:
        name: As `segment` or `drop:8`.
        num_frames: Most frames shown.
        segment: Start and end in seconds, for the views of `SPANS`.
        seed: For the views of `RANDOM`.
    """

    name: str
    num_frames: int
    segment: Span | None = None
    seed: int = 0

    def indices(self, timestamps: np.ndarray, fps: float = 0.0) -> np.ndarray:
        """Return the indices of the frames that are shown, in the order they are shown.

        Args:
            timestamps: float64 `[n]`, seconds, of all frames of the video.
            fps: Not used; `video.sampling.select_frames` passes it.

        Returns:
            int64 `[at most num_frames]`.

        Raises:
            ValueError: The view has no frame, or needs a segment.
        """
        name, magnitude = parse(self.name)
        needs_segment, function = VIEWS[name]
        if needs_segment and self.segment is None:
            raise ValueError(f"view {self.name} needs a segment")
        indices = function(timestamps, self, magnitude)
        if not len(indices):
            raise ValueError(f"view {self.name} of segment {self.segment} leaves no frame")
        return indices


def parse(name: str) -> tuple[str, int]:
    """Return manipulation and magnitude of a name such as `drop:8`; magnitude 1 if it has none.

    Raises:
        ValueError: The manipulation is unknown or does not take the magnitude.
    """
    bare, _, number = name.partition(":")
    if bare not in VIEWS:
        raise ValueError(f"unknown view {name!r}; choose from {', '.join(VIEWS)}")
    if bare == "sparse":
        if number.isdecimal() and int(number) > 1:
            return bare, int(number)
        raise ValueError(f"view {name!r} needs a number above 1, as sparse:4")
    allowed = tuple(map(str, MAGNITUDES)) if bare in ("drop", "shuffle", "reverse") else ("",)
    if number not in allowed:
        raise ValueError(f"view {name!r}: the magnitude must be one of {allowed}")
    return bare, int(number or 1)


def _spread(candidates: np.ndarray, num_frames: int) -> np.ndarray:
    """Return at most `num_frames` of the candidates, evenly spaced, none twice."""
    count = min(num_frames, len(candidates))
    return candidates[sample("uniform", len(candidates), 0.0, count)] if count else candidates


def full(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return frames evenly spaced over the whole video."""
    return _spread(np.arange(len(timestamps)), view.num_frames)


def segment(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return frames evenly spaced inside the segment."""
    return _spread(within(timestamps, segment=view.segment), view.num_frames)


def rest(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return frames evenly spaced over everything but the segment."""
    return _spread(within(timestamps, exclude=view.segment), view.num_frames)


def irrelevant(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return random frames outside the segment, in order of time."""
    outside = within(timestamps, exclude=view.segment)
    count = min(view.num_frames, len(outside))
    return np.sort(_rng(view).choice(outside, count, replace=False)) if count else outside


def sparse(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return every `magnitude`-th frame of `full`, the middle one of each group."""
    frames = full(timestamps, view, 1)
    return frames[min((magnitude - 1) // 2, len(frames) - 1) :: magnitude]


def drop(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return `full` without a random half of its parts."""
    parts = _parts(full(timestamps, view, 1), magnitude)
    kept = np.sort(_rng(view).permutation(len(parts))[: max(1, len(parts) // 2)])
    return np.concatenate([parts[i] for i in kept])


def shuffle(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return the parts of `full` in a random order other than the true one."""
    parts = _parts(full(timestamps, view, 1), magnitude)
    order = _rng(view).permutation(len(parts))
    if (np.diff(order) > 0).all():
        order = np.roll(order, 1)
    return np.concatenate([parts[i] for i in order])


def reverse(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Return the parts of `full` in reverse order; inside a part time runs forward."""
    return np.concatenate(_parts(full(timestamps, view, 1), magnitude)[::-1])


def _parts(frames: np.ndarray, count: int) -> list[np.ndarray]:
    return np.array_split(frames, min(count, len(frames)))


def _rng(view: View) -> np.random.Generator:
    return np.random.default_rng(view.seed)


# name -> (needs a segment, function of (timestamps of the whole video, the view, magnitude))
VIEWS: dict[str, tuple[bool, Callable[[np.ndarray, View, int], np.ndarray]]] = {
    "full": (False, full),
    "segment": (True, segment),
    "rest": (True, rest),
    "irrelevant": (True, irrelevant),
    "sparse": (False, sparse),
    "drop": (False, drop),
    "shuffle": (False, shuffle),
    "reverse": (False, reverse),
    "other": (False, full),
}
RANDOM = ("irrelevant", "drop", "shuffle")  # views that read the seed
SPANS = tuple(name for name, (needs_segment, _) in VIEWS.items() if needs_segment)
