"""What happens when: the timeline of one synthetic video, drawn from a seed.

A video is a sequence of *events*, one object each: a hue, a shape, a corner, a direction of motion.
A hue occurs at most once per video, so it is the key by which questions name an object. Some events
have an effect: while the object is still there, the border of the frame takes a colour. Between
events lie empty seconds, and in one of those gaps, where it fits, a *needle*: a dark frame with a
coloured digit.
Events and borders are so frequent that short videos, too, mostly hold several: telling them apart
is then learned from short videos.
Everything lasts at least `MIN_SECONDS`, so sampling with gaps of at most that many frames misses
nothing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

FPS = 1  # a tick of the timeline is a frame and a second
MIN_SECONDS = 4
HUES = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "pink")  # evenly spaced
SHAPES = ("circle", "square", "triangle", "cross")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MOTIONS = ("left", "right", "up", "down")
DIGITS = tuple("0123456789")
BORDERS = 0.7  # share of the events that switch on a border


@dataclasses.dataclass(frozen=True)
class Event:
    """An object, visible from second `start` up to `end`; attributes index the tables."""

    start: int
    end: int
    hue: int
    shape: int
    corner: int
    motion: int
    jitter: int  # 0..3, across the motion
    border: int | None  # hue of the border this object switches on for its last `MIN_SECONDS`


@dataclasses.dataclass(frozen=True)
class WorldNeedle:
    """A dark frame with a digit, from second `start` up to `end`."""

    start: int
    end: int
    hue: int
    digit: int
    corner: int


@dataclasses.dataclass(frozen=True)
class Timeline:
    """All that happens in a video of `seconds` seconds, in order of time and without overlap."""

    seconds: int
    events: tuple[Event, ...]
    needle: WorldNeedle | None


def generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Return the random generator of one purpose (0 timeline, 1 questions, 2 pixels) of a video."""
    return np.random.default_rng((seed, index, purpose))


def make_timeline(seed: int, index: int, seconds: int) -> Timeline:
    """Return the timeline of video `index` of a world, a pure function of the arguments."""
    rng = generator(seed, index, 0)
    hues, borders = (iter(rng.permutation(len(HUES)).tolist()) for _ in range(2))

    def draw(table: Sequence[str]) -> int:
        return int(rng.integers(len(table)))

    events, needle = list[Event](), None
    now = int(rng.integers(0, 7))
    due = int(rng.integers(1 + 2 * seconds // 3))  # later gaps are often too short for the needle
    for hue in hues:
        border = next(borders) if rng.random() < BORDERS else None
        length = 6 if border is not None else int(rng.integers(MIN_SECONDS, 7))
        if now + length > seconds:
            break
        event = Event(
            start=now,
            end=now + length,
            hue=hue,
            shape=draw(SHAPES),
            corner=draw(CORNERS),
            motion=draw(MOTIONS),
            jitter=int(rng.integers(4)),
            border=border,
        )
        events.append(event)
        now = event.end
        if needle is None and due <= now and now + 1 + MIN_SECONDS <= seconds:
            start, end = now + 1, now + 1 + MIN_SECONDS
            needle = WorldNeedle(start, end, draw(HUES), draw(DIGITS), draw(CORNERS))
            now = end + 1
        else:
            now += int(rng.integers(2, 6))
    return Timeline(seconds, tuple(events), needle)
