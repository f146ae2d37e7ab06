"""Shards to batches: which pairs a batch holds, and what becomes of them.

Batch `k` is a pure function of the config and `k`, so the state of an iterator is `k` alone: it is
the same on every host, and a run may resume with other hosts and workers than it began with. Grain
only carries batches over from worker processes ahead of time.
"""

import copy
import dataclasses
import sys
from collections.abc import Hashable, Iterable
from typing import TypeAlias

import numpy as np
from tokenizers import Tokenizer

from tpo_jax.data.batches import BatchIterator
from tpo_jax.data.clips import Clip, place_of
from tpo_jax.data.collate import collate
from tpo_jax.data.config import ANCHOR, SAME, DataConfig
from tpo_jax.data.order import epoch_order, held_out_videos, select
from tpo_jax.data.rows import CONTINUATION, Row, Size
from tpo_jax.data.shards import MANIFEST, Shards, open_shards
from tpo_jax.data.shown import Shown
from tpo_jax.data.two_videos import TwoVideos, select_two_videos
from tpo_jax.errors import InputError
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig

# Texts, frames and `pair_index` of a row; None: no pair in it.
_Packed: TypeAlias = tuple[Row | None, np.ndarray, np.ndarray]


class Pipeline:
    """The batches of this host, `pipeline[k]` or, decoded ahead, `iter(pipeline)`.

    Each host holds an equal share of the global batch: host `i` the `i`-th contiguous part of its
    rows, which begin with those of the pairs of two videos. At the end of an epoch, rows for which
    no pairs are left have `pair_index` -1 and no target. A pair that was skipped because it cannot
    be decoded has no target either, and its `pair_index` is -2 minus its position.

    A pair of two videos has two neighbouring rows, its chosen video first. The first row has the
    answer in the place of a chosen one, the second in that of a rejected one; both have the
    `pair_index` of the pair; if it was skipped, only the first has.

    With several numbers of frames (`data.num_frames`) a batch has one of them, `frames_of(k)`, and
    the P and R of that number.
    """

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Open the shards, and measure the texts where P or R is not given.

        Raises:
            InputError: the shards are damaged or hold too few pairs, a row is longer than P, R or
                the model's context, or the batch cannot be shared out among the hosts.
        """
        asked = config.time_instruction or model.time_instruction
        config = dataclasses.replace(config, time_instruction=asked)
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.shards = open_shards(config.shards, verify=config.verify_shards)
        if not self.shards.index:
            raise InputError(f"{config.shards}: holds videos, but no pairs; prepare takes --pairs")
        _check_frames(self.shards, config, model)
        self.shown = Shown(config, model, tokenizer, self.shards)
        self._videos = held_out_videos(self.shards.index, config.eval_share, config.seed)
        self.pairs = select(
            *(self.shards.index, config.mixing, config.limit, config.subset_seed, self._videos),
            two_videos=config.video_pairs > 0,
        )
        self.two_videos = TwoVideos(self._pairs_of_two_videos(), config.video_pairs)
        self._process = (process_index, process_count)
        rows = config.rows
        if rows % process_count or (config.video_pairs and rows // process_count % 2):
            raise InputError(f"{rows} rows of a batch cannot be shared by {process_count} hosts")
        self._local = slice(
            process_index * rows // process_count, (process_index + 1) * rows // process_count
        )
        positions = np.concatenate([self.pairs, self.two_videos.pairs, *self._held_out_pairs()])
        self._sizes = {n: self.shown.size(positions, n) for n in config.frames.counts}
        self._begin()

    def _pairs_of_two_videos(self) -> np.ndarray:
        """Return the positions of the pairs of two videos that are trained on."""
        config = self.config
        if not config.video_pairs:
            return np.zeros(0, np.int64)
        return select_two_videos(self.shards.index, config.limit, config.subset_seed, self._videos)

    def _begin(self) -> None:
        self._cached: tuple[int, np.ndarray] = (0, self.order(0))
        self.batches_per_epoch = len(self._cached[1])

    def once(
        self,
        pairs: np.ndarray | None = None,
        num_frames: int = 0,
        two_videos: np.ndarray | None = None,
    ) -> "Pipeline":
        """Return the same open data in another order: one epoch, not shuffled, all batches with
        the same number of frames.

        Shards, sizes of a batch and decoded clips are shared; nothing is read or tokenized again.

        Args:
            pairs: int64, positions of the pairs; None: those of this pipeline.
            num_frames: one of this pipeline's; 0: the most.
            two_videos: int64, positions of the pairs of two videos; None: those of this pipeline.
        """
        other, config = copy.copy(self), self.config
        num_frames = num_frames or config.frames.most
        other.config = dataclasses.replace(
            config, num_frames=num_frames, num_frames_weights=(), shuffle=False, num_epochs=1
        )
        other.pairs = self.pairs if pairs is None else pairs
        found = self.two_videos.pairs if two_videos is None else two_videos
        other.two_videos = TwoVideos(found, self.config.video_pairs, repeat=False)
        other._begin()
        return other

    def held_out(self) -> "Pipeline | None":
        """Return the pairs that are not trained on, in one epoch, not shuffled; None without
        `eval_shards` and `eval_share`.

        They have this pipeline's largest number of frames. Batches of a share have its P and R,
        those of `eval_shards` at least these where the model's context allows it.

        Raises:
            InputError: there is no such pair, or as for a pipeline of `eval_shards`.
        """
        if self._videos:
            pairs, two_videos = self._held_out_pairs()
            return self.once(pairs, two_videos=two_videos)
        if not self.config.eval_shards:
            return None
        most = self.config.frames.most
        config = dataclasses.replace(
            self.config,
            shards=self.config.eval_shards,
            num_frames=most,
            num_frames_weights=(),
            mixing=(),
            limit=0,
            eval_shards="",
        )
        other = Pipeline(config, self.model, self.tokenizer, *self._process)
        other.widen([self])
        return other.once()

    def widen(self, others: "Iterable[Pipeline]") -> None:
        """Take the largest P and R that other pipelines have with the same number of frames, where
        the model's context allows it, so that one program serves all of them.
        """
        for num_frames, own in self._sizes.items():
            sizes = [own, *(other._sizes.get(num_frames, own) for other in others)]
            size = Size(*map(max, zip(*sizes, strict=True)))
            if sum(size) <= self.model.max_length:
                self._sizes[num_frames] = size

    def seen(self, num_batches: int) -> "list[Pipeline]":
        """Return a pipeline for every number of frames, with the pairs that have it in the first
        batches; this pipeline, if it has only one number.
        """
        frames = self.config.frames
        if len(frames.counts) == 1:
            return [self]
        with_frames: dict[int, list[int]] = {n: [] for n in frames.counts}
        for k in range(num_batches):
            with_frames[self.frames_of(k)].append(k)

        def used(parts: Iterable[np.ndarray]) -> np.ndarray:
            found = np.unique(np.concatenate([part.ravel() for part in parts]))
            return found[found >= 0]

        return [
            self.once(used(map(self._positions, batches)), n, used(map(self._two_of, batches)))
            for n, batches in with_frames.items()
            if batches
        ]

    def for_reference(self) -> "Pipeline":
        """Return the pairs as the reference sees them (`data.reference_view`); this pipeline where
        that is what the policy sees.

        Raises:
            InputError: A pair has no such view.
        """
        if self.config.reference_view == SAME:
            return self
        if self.shards.manifest["frames"] != "clip":
            raise InputError(
                f"{self.shards.directory / MANIFEST}: holds single frames, and "
                f"data.reference_view={ANCHOR} needs others; prepare with --frames=clip"
            )
        for pair in (self.shards.index[position] for position in self.pairs):
            if pair.kind == "localized" and not pair.segment:
                raise InputError(
                    f"{place_of(self.shards, pair)}: a localized pair without a segment, which "
                    f"data.reference_view={ANCHOR} needs"
                )
        other = copy.copy(self)
        other.shown = Shown(self.config, self.model, self.tokenizer, self.shards, ANCHOR)
        positions = np.concatenate([self.pairs, self.two_videos.pairs])
        other._sizes = {n: other.shown.size(positions, n) for n in self.config.frames.counts}
        return other

    def _held_out_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of pairs of held-out videos: those of two answers, and those of two
        videos of which the chosen one is held out.
        """
        index = self.shards.index
        found = [i for i, pair in enumerate(index) if pair.video_id in self._videos]
        pairs = [i for i in found if index[i].kind != "video"]
        if self._videos and not pairs:
            raise InputError(f"data.eval_share={self.config.eval_share}: no pair is held out")
        two = [i for i in found if index[i].kind == "video" and self.config.video_pairs]
        return np.array(pairs, np.int64), np.array(two, np.int64)

    def __len__(self) -> int:
        """Return the number of batches of the run; 2**40 where it has no end."""
        return self.batches_per_epoch * self.config.num_epochs or 2**40

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self, self.config.workers, self.shape.num_bytes)

    def order(self, epoch: int) -> np.ndarray:
        """Return the pairs of an epoch, except those of two videos: int64 `[batches, rows, Q]` of
        all hosts, positions or -1.
        """
        config = self.config
        order = epoch_order(
            self.shards.index,
            self.pairs,
            config.batch_size // config.pairs_per_row,
            config.pairs_per_row,
            seed=config.seed,
            epoch=epoch,
            shuffle=config.shuffle,
            curriculum=config.curriculum,
        )
        more = max(0, self.two_videos.batches - len(order))
        return np.pad(order, ((0, more), (0, 0), (0, 0)), constant_values=-1)

    def __getitem__(self, k: int) -> Batch:
        """Return this host's part of batch `k`."""
        if not 0 <= k < len(self):
            raise IndexError(f"batch {k} of {len(self)}")
        clips: dict[Hashable, Clip] = {}  # pairs of one video share it
        begin, end = self._local.start, self._local.stop
        two = self._two_of(k)[begin // 2 : (end + 1) // 2].tolist()
        rows = [row for position in two for row in self._two_rows(position, k, clips)]
        begin, end = (max(0, at - 2 * self.config.video_pairs) for at in (begin, end))
        rows += [self._row(positions, k, clips) for positions in self._positions(k)[begin:end]]
        texts, frames, index = zip(*rows, strict=True)
        batch = collate(self.model, texts, frames, self.shape_with(self.frames_of(k)))
        return dataclasses.replace(batch, pair_index=np.stack(index))

    def frames_of(self, k: int) -> int:
        """Return the number of frames of batch `k`."""
        return self.config.frames.drawn(self.config.seed, k)

    def _positions(self, k: int) -> np.ndarray:
        """Return the pairs of batch `k`: int64 `[B, Q]` of all hosts, positions or -1."""
        epoch, step = divmod(k, self.batches_per_epoch)
        cached = self._cached  # read once: threads of two epochs may be here
        if cached[0] != epoch:
            cached = self._cached = (epoch, self.order(epoch))
        return cached[1][step]

    def _two_of(self, k: int) -> np.ndarray:
        """Return the pairs of two videos of batch `k`: int64 `[video_pairs]`, positions or -1."""
        return self.two_videos.of_batch(k, self.config.seed, self.config.shuffle)

    @property
    def shape(self) -> BatchShape:
        """The shape of this host's part of a batch; of several, that with the most frames."""
        return self.shape_with(self.config.frames.most)

    def shape_with(self, num_frames: int) -> BatchShape:
        """Return the shape of this host's part of a batch with this number of frames."""
        config, size = self.config, self._sizes[num_frames]
        return BatchShape(
            rows=self._local.stop - self._local.start,
            prefix=size.prefix,
            questions=config.pairs_per_row,
            answers=config.answers,
            response=size.response,
            frames=self.model.batch_frames(num_frames),
            frame_shape=self.model.frame_shape,
            prefix_labels=config.prompt_style == "dpo_trainer",
            pairs=True,
            phrases=config.phrases,
        )

    def _row(self, positions: np.ndarray, k: int, clips: dict[Hashable, Clip]) -> _Packed:
        """Return texts, frames and `pair_index` of one row of batch `k`; None: no pair in it.

        `clips` holds the clips of the batch that are already decoded; the row's clip is added.
        """
        skipping, num_frames = self.config.on_error == "skip_and_count", self.frames_of(k)
        used, skipped = positions[positions >= 0].tolist(), 0
        for position in used:  # the pairs of a row have the same video
            try:
                clip = self.shown.clip(self.shards.index[position], num_frames, clips)
                break
            except InputError as error:
                if not skipping:
                    raise
                skipped += 1
                self._report_skipped(position, k, error)
        index = positions.astype(np.int32)
        index[:skipped] = -2 - index[:skipped]
        if skipped == len(used):
            return None, self._no_frames, index
        pairs = [self.shards.index[position] for position in used]
        texts = self.shown.texts(pairs, clip, self._sizes[num_frames])
        for name, values in texts.arrays().items():
            if name in CONTINUATION:
                values[:skipped] = 0
        return texts, clip.frames, index

    @property
    def _no_frames(self) -> np.ndarray:
        return np.zeros((0, *self.model.frame_shape), np.uint8)

    def _report_skipped(self, position: int, k: int, error: InputError) -> None:
        name = self.shards.index[position].id
        print(f"batch {k}: pair {name!r} is skipped: {error}", file=sys.stderr, flush=True)

    def _two_rows(self, position: int, k: int, clips: dict[Hashable, Clip]) -> list[_Packed]:
        """Return the rows of a pair of two videos in batch `k`, each as `_row` does; -1: no pair.

        Both are empty if one of the videos cannot be decoded.
        """
        index = np.full((2, self.config.pairs_per_row), -1, np.int32)
        empty: list[_Packed] = [(None, self._no_frames, index[side]) for side in (0, 1)]
        if position < 0:
            return empty
        num_frames = self.frames_of(k)
        try:
            sides = self.shown.rejected_videos.sides(self.shards.index[position])
            seen = [self.shown.clip(pair, num_frames, clips) for pair in sides]
        except InputError as error:
            if self.config.on_error == "error":
                raise
            self._report_skipped(position, k, error)
            index[0, 0] = -2 - position
            return empty
        index[:, 0] = position
        rows: list[_Packed] = []
        for side, (pair, clip) in enumerate(zip(sides, seen, strict=True)):
            texts = self.shown.texts([pair], clip, self._sizes[num_frames])
            for name, values in texts.arrays().items():
                if name in CONTINUATION:
                    values[:, 1 - side] = 0
            rows.append((texts, clip.frames, index[side]))
        return rows


def _check_frames(shards: Shards, config: DataConfig, model: ModelConfig) -> None:
    """Check that batches can have the numbers of frames of a config.

    Stored images have the number and rule they were stored with; stored packets allow any.
    """
    stored, shapes = shards.manifest["sampling"], dict[int, int]()
    for num_frames in config.frames.counts:
        wanted = {"rule": config.sampling, "num_frames": num_frames}
        if shards.manifest["frames"] != "clip" and stored != wanted:
            raise InputError(
                f"{shards.directory / MANIFEST}: holds {stored['num_frames']} frames by "
                f"{stored['rule']}, not {num_frames} by {config.sampling}; run prepare again"
            )
        if (same := shapes.setdefault(model.batch_frames(num_frames), num_frames)) != num_frames:
            raise InputError(
                f"data.num_frames: {same} and {num_frames} frames are the same "
                f"{model.batch_frames(num_frames)} pairs of frames for this model; leave one out"
            )
