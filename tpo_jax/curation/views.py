"""What of a video a model is shown: one small pure function per manipulation, by name.

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
incomplete). The others are those of its successors (TEMPLE, arXiv 2503.16929; RRPO, 2504.12083) at
magnitudes 2, 4, 8 and 16: the more parts, the less is left of the order, the easier to tell apart.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from tpo_jax.video.sampling import sample, within

MAGNITUDES = (2, 4, 8, 16)
Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class View:
    """A manipulation of one video, all it depends on; equal views show equal frames.

    `segment` is in seconds; `seed` is read by the random ones alone.
    """

    name: str
    num_frames: int
    segment: Span | None = None
    seed: int = 0

    def indices(self, timestamps: np.ndarray, fps: float = 0.0) -> np.ndarray:
        """Which frames of a video are shown, in the order they are shown.

        Args:
            timestamps: float64 `[n]`, seconds, of all frames of the video.
            fps: not read; `data.sampling.select_frames` gives it.

        Returns:
            int64 `[at most num_frames]`.

        Raises:
            ValueError: nothing is left to show.
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
    """(manipulation, magnitude) of a name such as `drop:8`; magnitude 1 where there is none.

    Raises:
        ValueError: no such manipulation, or a magnitude it does not take.
    """
    bare, _, number = name.partition(":")
    if bare not in VIEWS:
        raise ValueError(f"no view {name!r}; there are {', '.join(VIEWS)}")
    if bare == "sparse":
        if number.isdecimal() and int(number) > 1:
            return bare, int(number)
        raise ValueError(f"view {name!r} needs a number above 1, as sparse:4")
    allowed = tuple(map(str, MAGNITUDES)) if bare in ("drop", "shuffle", "reverse") else ("",)
    if number not in allowed:
        raise ValueError(f"view {name!r}: the magnitude must be one of {allowed}")
    return bare, int(number or 1)


def _spread(candidates: np.ndarray, num_frames: int) -> np.ndarray:
    """At most `num_frames` of the candidates, evenly spaced, none twice."""
    count = min(num_frames, len(candidates))
    return candidates[sample("uniform", len(candidates), 0.0, count)] if count else candidates


def full(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Evenly spaced over the whole video."""
    return _spread(np.arange(len(timestamps)), view.num_frames)


def segment(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Evenly spaced inside the segment."""
    return _spread(within(timestamps, segment=view.segment), view.num_frames)


def rest(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Evenly spaced over everything but the segment."""
    return _spread(within(timestamps, exclude=view.segment), view.num_frames)


def irrelevant(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Random frames of everything but the segment, in order of time."""
    outside = within(timestamps, exclude=view.segment)
    count = min(view.num_frames, len(outside))
    return np.sort(_rng(view).choice(outside, count, replace=False)) if count else outside


def sparse(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """Every `magnitude`-th frame of `full`, the middle one of each group."""
    frames = full(timestamps, view, 1)
    return frames[min((magnitude - 1) // 2, len(frames) - 1) :: magnitude]


def drop(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """`full` without a random half of its parts."""
    parts = _parts(full(timestamps, view, 1), magnitude)
    kept = np.sort(_rng(view).permutation(len(parts))[: max(1, len(parts) // 2)])
    return np.concatenate([parts[i] for i in kept])


def shuffle(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """The parts of `full` in a random order that is not the true one."""
    parts = _parts(full(timestamps, view, 1), magnitude)
    order = _rng(view).permutation(len(parts))
    if (np.diff(order) > 0).all():
        order = np.roll(order, 1)
    return np.concatenate([parts[i] for i in order])


def reverse(timestamps: np.ndarray, view: View, magnitude: int) -> np.ndarray:
    """The parts of `full`, the last first; inside a part time runs forward."""
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
