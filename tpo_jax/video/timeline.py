"""When the frames of a video are shown, and from which of them decoding can start."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Clock(NamedTuple):
    """How a video counts time."""

    tick: Fraction  # seconds per tick
    start: int  # of the stream, ticks
    rate: Fraction  # frames per second, as the container states it


class Timeline(NamedTuple):
    """The frames of a video in the order in which they are shown."""

    num_frames: int
    times: np.ndarray  # int64 [num_frames], ticks, ascending; empty if they are not known
    keys: np.ndarray  # int64, the frames from which decoding can start
    trusted: bool  # told by the packets, not counted by decoding
    spacing: str  # how `seconds` makes time stamps of the times, a name in `_SPACINGS`

    def seconds(self, clock: Clock) -> np.ndarray:
        """Return the time stamps, float64 `[num_frames]`, seconds from the first frame.

        Every shard holds these time stamps, so their rounding must not change.
        """
        return _SPACINGS[self.spacing](self, clock)


def _exact(timeline: Timeline, clock: Clock) -> np.ndarray:
    ticks = timeline.times - timeline.times[0]
    return ticks * clock.tick.numerator / clock.tick.denominator


def _milliseconds(timeline: Timeline, clock: Clock) -> np.ndarray:
    milliseconds = (timeline.times - clock.start) * float(clock.tick) * 1000
    return (milliseconds - milliseconds[0]) / 1000


def _even(timeline: Timeline, clock: Clock) -> np.ndarray:
    return np.arange(timeline.num_frames) * 1000 / float(clock.rate) / 1000


_SPACINGS = {"exact": _exact, "milliseconds": _milliseconds, "even": _even}


def counted(times: list[int | None]) -> Timeline:
    """Return the timeline of frames as the decoder returned them, with their times in ticks."""
    known = np.array([time for time in times if time is not None], np.int64)
    usable = len(known) == len(times) and bool(np.all(np.diff(known) > 0))
    return Timeline(
        num_frames=len(times),
        times=known if usable else known[:0],
        keys=np.zeros(0, np.int64),
        trusted=False,
        spacing="milliseconds" if usable else "even",
    )
