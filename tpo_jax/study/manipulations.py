"""Which of a video's frames the model sees when it answers: pure functions on sampled frames.

Localized pairs contrast the segment kept with the segment removed, comprehensive pairs all frames
with a sparse subset (TPO paper, section 3.1; `reference/method_and_field.md` A1).
"""

import numpy as np

Span = tuple[float, float]


def kept_segment(timestamps: np.ndarray, segment: Span, width: int) -> np.ndarray:
    """The segment kept: `width` consecutive frames around it.

    Args:
        timestamps: `[F]` ascending, in seconds.
        segment: (start, end) in seconds.
        width: frames, at most `F`.

    Returns:
        Indices, int64 `[width]`, consecutive; centred on the segment where the video allows it.
    """
    if not 0 < width <= len(timestamps):
        raise ValueError(f"width={width} must lie between 1 and the {len(timestamps)} frames")
    middle = np.searchsorted(timestamps, (segment[0] + segment[1]) / 2)
    start = np.clip(middle - width // 2, 0, len(timestamps) - width)
    return np.arange(start, start + width)


def removed_segment(timestamps: np.ndarray, segment: Span, width: int) -> np.ndarray:
    """The segment removed: all frames but those of `kept_segment`, int64 `[F - width]`."""
    return np.setdiff1d(np.arange(len(timestamps)), kept_segment(timestamps, segment, width))


def sparse(num_frames: int, kept: int) -> np.ndarray:
    """`kept` of `num_frames` frames, evenly spaced and centred in their shares: int64 `[kept]`."""
    if not 0 < kept <= num_frames:
        raise ValueError(f"kept={kept} must lie between 1 and the {num_frames} frames")
    return ((np.arange(kept) + 0.5) * num_frames / kept).astype(np.int64)
