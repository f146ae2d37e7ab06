"""What a single frame shows, as class labels: enough to pre-train a vision encoder.

The hue and the corner of an object and of a needle are one label each, as questions have one word
for both.
"""

import numpy as np

from tpo_jax.worlds.timeline import (
    CORNERS,
    DIGITS,
    FPS,
    HUES,
    MIN_SECONDS,
    MOTIONS,
    SHAPES,
    Timeline,
)

# state (nothing, object, needle); hue; shape; corner; motion; border (none or a hue); digit
SIZES = (
    3,
    len(HUES),
    len(SHAPES),
    len(CORNERS),
    len(MOTIONS),
    1 + len(HUES),
    len(DIGITS),
)


def frame_labels(timeline: Timeline, timestamps: np.ndarray) -> np.ndarray:
    """Return labels of the frames at `timestamps` (s): int32 `[n, len(SIZES)]`, -1: no label."""
    labels = np.full((len(timestamps), len(SIZES)), -1, np.int32)
    labels[:, [0, 5]] = 0
    ticks = np.asarray(timestamps) * FPS
    for event in timeline.events:
        here = (event.start <= ticks) & (ticks < event.end)
        labels[here, :5] = (1, event.hue, event.shape, event.corner, event.motion)
        if event.border is not None:
            labels[here & (ticks >= event.end - MIN_SECONDS), 5] = 1 + event.border
    if needle := timeline.needle:
        here = (needle.start <= ticks) & (ticks < needle.end)
        labels[here, 0] = 2
        labels[here, 1] = needle.hue
        labels[here, 3] = needle.corner
        labels[here, 6] = needle.digit
    return labels
