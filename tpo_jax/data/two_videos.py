"""Pairs of one answer and two videos: which are used, in which batches, and their second side."""

import dataclasses
import functools
from collections.abc import Collection, Sequence

import numpy as np

from tpo_jax.data.clips import place_of
from tpo_jax.data.draws import TWO_VIDEOS
from tpo_jax.data.order import ranked
from tpo_jax.data.records import PairRecord
from tpo_jax.data.shards import Shards
from tpo_jax.errors import InputError
from tpo_jax.video import sampling
from tpo_jax.video.decode import opened


def select_two_videos(
    index: Sequence[PairRecord],
    limit: int = 0,
    subset_seed: int = 0,
    excluded: Collection[str] = (),
) -> np.ndarray:
    """Return the positions of the pairs of two videos that are used, int64, ascending.

    Args:
        index: All pairs; frames are not needed.
        limit: At most so many pairs; 0: all.
        subset_seed: As `order.select` takes it.
        excluded: Videos of which no pair is used, on neither side.

    Raises:
        InputError: Both videos of a pair are the same.
    """
    hashes = {pair.video_digest for pair in index if pair.video_id in excluded}
    used = [
        i
        for i in ranked(index, subset_seed)
        if index[i].kind == "video"
        and not hashes & {index[i].video_digest, index[i].rejected_video_digest}
    ]
    used = used[: limit or len(used)]
    for pair in (index[i] for i in used):
        if pair.video_digest == pair.rejected_video_digest:
            raise InputError(
                f"pair {pair.id!r}: {pair.video_id} and {pair.rejected_video_id}, its two videos, "
                "are the same video; run prepare again, which leaves such pairs out"
            )
    return np.sort(np.array(used, np.int64))


@dataclasses.dataclass(frozen=True)
class TwoVideos:
    """The pairs of two videos of a pipeline, and how many of them every batch has.

    Attributes:
        pairs: int64, positions in the shards.
        per_batch: Number of pairs in a batch of all hosts.
        repeat: Whether they begin again, in another order, once all were used; false: each is used
            once.
    """

    pairs: np.ndarray
    per_batch: int
    repeat: bool = True

    @property
    def batches(self) -> int:
        """How many batches hold every pair once; 0 where the pairs begin again."""
        return 0 if self.repeat or not self.per_batch else -(-len(self.pairs) // self.per_batch)

    def of_batch(self, k: int, seed: int, shuffle: bool) -> np.ndarray:
        """Return the pairs of batch `k`: int64 `[per_batch]`, positions or -1."""
        places = k * self.per_batch + np.arange(self.per_batch)
        if not len(self.pairs):
            return np.full_like(places, -1)
        cycles, at = np.divmod(places, len(self.pairs))
        if not self.repeat:
            return np.where(cycles == 0, self.pairs[at], -1)
        if not shuffle:
            return self.pairs[at]
        orders = {c: _permuted(self.pairs, seed, c) for c in np.unique(cycles).tolist()}
        return np.array([orders[c][i] for c, i in zip(cycles.tolist(), at.tolist(), strict=True)])


def _permuted(pairs: np.ndarray, seed: int, cycle: int) -> np.ndarray:
    return np.random.default_rng([seed, cycle, TWO_VIDEOS]).permutation(pairs)


class RejectedVideos:
    """The second sides of the pairs of two videos."""

    def __init__(self, shards: Shards):
        """Read nothing yet."""
        self._shards = shards

    @functools.cached_property
    def _first_sides(self) -> dict[str, PairRecord]:
        return {pair.video_digest: pair for pair in self._shards.index}

    def sides(self, pair: PairRecord) -> tuple[PairRecord, ...]:
        """Return a pair, and after it, if it has two videos, the pair on its rejected video.

        Raises:
            InputError: The times of the frames of the rejected video are not known.
        """
        if pair.kind != "video":
            return (pair,)
        duration, fps, times = self._times(pair)
        second = dataclasses.replace(
            pair,
            video_id=pair.rejected_video_id,
            video_digest=pair.rejected_video_digest,
            timestamps=times,
            duration=duration,
            fps=fps,
        )
        return pair, second

    def _times(self, pair: PairRecord) -> tuple[float, float, tuple[float, ...]]:
        """Return duration, rate and times of the sampled frames of the rejected video."""
        shards, digest = self._shards, pair.rejected_video_digest
        if known := self._first_sides.get(digest):
            return known.duration, known.fps, known.timestamps
        if shards.manifest["frames"] != "clip":
            raise InputError(
                f"{place_of(shards, pair)}: the shards do not say when the frames of its rejected "
                f"video, {pair.rejected_video_id}, were taken; prepare with --frames=clip"
            )
        rule, num_frames = (shards.manifest["sampling"][name] for name in ("rule", "num_frames"))
        try:
            with opened(shards.videos.video(digest)) as video:
                fps = video.info.fps
                taken = sampling.sample(rule, len(video.timestamps), fps, num_frames)
                return video.info.duration, fps, tuple(video.timestamps[taken].tolist())
        except ValueError as error:
            raise InputError(f"{place_of(shards, pair)}: {error}") from error
