"""How many frames the videos of a batch have: one number for all, or one of several per batch."""

import dataclasses
from collections.abc import Sequence

from tpo_jax.data import draws
from tpo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class FrameCounts:
    """Numbers of frames, and how often a batch has each."""

    counts: tuple[int, ...]
    shares: tuple[float, ...]  # of the batches; they add up to 1

    @property
    def most(self) -> int:
        """The largest number."""
        return max(self.counts)

    def drawn(self, seed: int, k: int) -> int:
        """Return the number of frames of batch `k`: a function of the seed and `k` alone."""
        return self.counts[draws.drawn(self.shares, seed, k, draws.FRAMES)]


def frame_counts(num_frames: int | Sequence[int], weights: Sequence[float]) -> FrameCounts:
    """Return the numbers of frames that a config asks for.

    Args:
        num_frames: Of every batch, or the numbers that batches are drawn from.
        weights: How often a batch has each number; empty: all equally often.

    Raises:
        InputError: A number is not an integer above 0 or is repeated, or as `draws.shares_of`.
    """
    counts = tuple(num_frames) if isinstance(num_frames, (tuple, list)) else (num_frames,)
    written = [str(count) for count in counts]
    given = f"data.num_frames={','.join(written)}"
    # Text and other numbers are possible: the field takes one value or several, so it has no type.
    if not counts or not all(type(count) is int and count >= 1 for count in counts):
        raise InputError(f"{given} must be at least 1, a whole number or several, as 16,32,64")
    if twice := sorted({count for count in counts if counts.count(count) > 1}):
        raise InputError(f"{given}: {twice[0]} is there twice")
    shares = draws.shares_of("data.num_frames_weights", weights, written, "data.num_frames")
    return FrameCounts(counts, shares)
