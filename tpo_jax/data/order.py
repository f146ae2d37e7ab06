"""Which pairs are used and in which order they come: pure functions of what the index says."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError


def held_out_videos(index: Sequence[PairRecord], share: float, seed: int) -> frozenset[str]:
    """Return the videos whose pairs are held out; which ones depends on their ids and the seed.

    Args:
        index: All pairs, without frames.
        share: Of the videos, rounded to whole ones, at least one; 0: none.
        seed: Draws them.

    Raises:
        InputError: There is one video only, or no video is left to train on.
    """
    videos = {pair.video_id for pair in index}
    count = max(1, round(share * len(videos))) if share else 0
    if count >= len(videos):
        raise InputError(f"data.eval_share={share} leaves none of {len(videos)} videos to train on")
    drawn = sorted(videos, key=lambda v: hashlib.sha256(f"{seed} {v}".encode()).digest())
    return frozenset(drawn[:count])


def ranked(index: Sequence[PairRecord], subset_seed: int) -> list[int]:
    """Return the positions of all pairs in the order in which a limit takes them: that of the
    index, or one drawn by a seed other than 0.
    """
    positions = list(range(len(index)))
    if subset_seed:
        order = lambda i: hashlib.sha256(f"{subset_seed} {index[i].id}".encode()).digest()  # noqa: E731
        positions.sort(key=order)
    return positions


def select(
    index: Sequence[PairRecord],
    mixing: tuple[float, ...] = (),
    limit: int = 0,
    subset_seed: int = 0,
    excluded: Collection[str] = (),
    two_videos: bool = False,
) -> np.ndarray:
    """Return the positions of the pairs of two answers that are used, int64, ascending; the same in
    every epoch.

    Args:
        index: All pairs; frames are not needed.
        mixing: Shares of localized and of comprehensive pairs. The first pairs of each kind are
            used, as many as these shares allow, none twice. Empty: all kinds as they are.
        limit: At most this many pairs, the first ones; 0: all.
        subset_seed: "First" is in an order drawn by this seed, so that a smaller limit gives a
            subset of a larger one; 0: in the order of the index.
        excluded: videos of which no pair is used.
        two_videos: Whether pairs of kind `video` are trained on, too; they are selected by
            `two_videos.select_two_videos`.

    Raises:
        InputError: No pair is left, or one is of kind `video` and these are not trained on.
    """
    limit = limit or len(index)
    order = [i for i in ranked(index, subset_seed) if index[i].video_id not in excluded]
    if not mixing:
        used = [i for i in order if not (two_videos and index[i].kind == "video")][:limit]
        if count := sum(index[i].kind == "video" for i in used):
            raise InputError(
                f"{count} of {len(used)} pairs are one answer on two videos (kind 'video'): to "
                "train on them set objective.video_weight and data.video_pairs; to leave them out "
                "set data.mixing, which takes localized and comprehensive pairs alone"
            )
        if two_videos and not used:
            raise InputError(
                "all pairs are one answer on two videos; a batch needs train.batch_size pairs of "
                "two answers beside them"
            )
        return np.sort(np.array(used, np.int64))
    shares = dict(zip(("localized", "comprehensive"), np.array(mixing) / sum(mixing), strict=True))
    of_kind = {k: [i for i in order if index[i].kind == k] for k in shares}
    total = min([limit, *(len(of_kind[kind]) / share for kind, share in shares.items() if share)])
    # The small term: a share such as 0.3 of 10 must not become 2.
    parts = [of_kind[kind][: int(total * share + 1e-6)] for kind, share in shares.items()]
    if not (chosen := sorted(sum(parts, []))):
        counts = ", ".join(f"{len(positions)} {kind}" for kind, positions in of_kind.items())
        raise InputError(f"data.mixing={mixing}: no pair is left of {counts}")
    return np.array(chosen, np.int64)


def epoch_order(
    index: Sequence[PairRecord],
    pairs: np.ndarray,
    rows_per_batch: int,
    pairs_per_row: int = 1,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    curriculum: bool = False,
) -> np.ndarray:
    """Return the pairs of an epoch, every one once: int64 `[batches, B, Q]` positions, -1: none.

    Pairs of one video, and of the same messages before it, fill rows of `Q`; their last row and the
    last batch may stay incomplete. With `curriculum` rows come from easy to hard: by decreasing
    magnitude of the manipulation that made the rejected answer (TEMPLE, arXiv 2503.16929); pairs
    without one are spread over all magnitudes.
    """
    rng = np.random.default_rng([seed, epoch])
    pairs = rng.permutation(pairs) if shuffle else pairs
    level = _levels(index, pairs, rng) if curriculum else dict.fromkeys(pairs.tolist(), 0)
    q = pairs_per_row
    if q == 1:
        rows = [[position] for position in pairs.tolist()]
    else:
        videos: dict[tuple, list[int]] = defaultdict(list)
        for position in pairs.tolist():
            pair = index[position]
            videos[pair.video_id, pair.before_video, level[position]].append(position)
        rows = [same[i : i + q] for same in videos.values() for i in range(0, len(same), q)]
        rows = [rows[i] for i in rng.permutation(len(rows))] if shuffle else rows
    rows.sort(key=lambda row: -level[row[0]])  # keeps the order of equals
    batches = -(-len(rows) // rows_per_batch)
    order = np.full((batches * rows_per_batch, q), -1, np.int64)
    for i, row in enumerate(rows):
        order[i, : len(row)] = row
    return order.reshape(batches, rows_per_batch, q)


def _levels(
    index: Sequence[PairRecord], pairs: np.ndarray, rng: np.random.Generator
) -> dict[int, int]:
    """Return magnitudes by position: the number that ends a manipulation, as in `full / drop:8`."""
    found = {p: re.search(r":(\d+)$", index[p].provenance.manipulation) for p in pairs.tolist()}
    there = sorted({int(match[1]) for match in found.values() if match}) or [0]
    drawn = rng.choice(there, len(found)).tolist()
    return {
        p: int(match[1]) if match else other
        for (p, match), other in zip(found.items(), drawn, strict=True)
    }
