"""Shards to batches: which pairs a batch holds, and what becomes of them.

Batch `k` is a pure function of the config and `k`, so the state of an iterator is `k` alone: it is
the same on every host, and a run may resume with other hosts and workers than it began with. Grain
only carries batches over from worker processes ahead of time.
"""

import copy
import dataclasses
import hashlib
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from tokenizers import Tokenizer

from tpo_jax.data.batches import BatchIterator
from tpo_jax.data.clips import Clip, ClipCache, place_of, read_clip
from tpo_jax.data.collate import collate
from tpo_jax.data.draws import shares_of
from tpo_jax.data.frame_counts import FrameCounts, frame_counts
from tpo_jax.data.lengths import measured
from tpo_jax.data.order import epoch_order, held_out_videos, select
from tpo_jax.data.processor import NO_FRAMES, Processor
from tpo_jax.data.records import PairRecord, Span
from tpo_jax.data.rows import CONTINUATION, PrefixError, Row, Size
from tpo_jax.data.shards import MANIFEST, Shards, open_shards
from tpo_jax.data.two_videos import RejectedVideos, TwoVideos, select_two_videos
from tpo_jax.errors import InputError
from tpo_jax.families.template import STYLES
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig, key_of
from tpo_jax.video import sampling

ON_ERROR = ("error", "skip_and_count")
SAME, ANCHOR = "same", "anchor"  # what the reference sees of a video
# Texts, frames and `pair_index` of a row; None: no pair in it.
_Packed: TypeAlias = tuple[Row | None, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, in which order, and the static shapes of a batch: section `data` of a config.

    The five fields without a default follow from other sections.
    """

    batch_size: int  # pairs of two answers, of all hosts
    num_epochs: int  # 0: without end
    seed: int  # of the order of pairs
    answers: int  # A: 2, or 1 for the chosen answer only
    phrases: bool  # whether batches say in which tokens the answers differ
    shards: str = ""  # directory that `prepare` made
    replay: tuple[str, ...] = ()  # more such directories; a batch is of one
    replay_weights: tuple[float, ...] = ()  # how often of `shards` and of each; (): equally often
    num_frames: int | tuple[int, ...] = 32  # of a video; of several, a batch has one
    num_frames_weights: tuple[float, ...] = ()  # how often it has which; (): all equally often
    pairs_per_row: int = 1  # Q: pairs of one video that share its row
    sampling: str = "uniform"
    time_instruction: str = ""  # empty: what the model asks for
    prompt_style: str = "inference"
    reference_view: str = SAME  # of a video: what the policy sees, or "anchor": a pair's segment
    shuffle: bool = True
    video_pairs: int = 0  # pairs of one answer on two videos in a batch, beside `batch_size` others
    mixing: tuple[float, ...] = ()  # shares of localized and comprehensive pairs; (): all pairs
    limit: int = 0  # pairs used; 0: all
    subset_seed: int = 0  # draws the pairs of `limit`, nested; 0: the first ones
    curriculum: bool = False  # from easy to hard manipulations within an epoch
    max_prefix: int = 0  # P; 0: what the longest pair needs, rounded up
    max_response: int = 0  # R; 0: likewise
    prefix_multiple: int = 128
    response_multiple: int = 16
    workers: int = 2  # decoding processes; 0: threads of this one
    cache_mib: int = 0  # room for decoded frames that this process keeps for later epochs
    on_error: str = "error"  # or "skip_and_count": a pair that cannot be decoded is left out
    verify_shards: bool = False  # whether their content is compared with the manifest's checksums
    eval_shards: str = ""  # directory of held-out pairs
    eval_share: float = 0.0  # or the share of the videos in `shards` whose pairs are held out

    def __post_init__(self) -> None:
        _ = self.frames  # checks both fields
        if not self.shares[0]:
            raise InputError(
                f"data.replay_weights={','.join(map(str, self.replay_weights))}: the first is that "
                "of data.shards, by which the run counts its epochs; it must be above 0"
            )
        for name in ("batch_size", "pairs_per_row"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name}={getattr(self, name)} must be at least 1")
        counts = ("num_epochs", "limit", "max_prefix", "max_response", "workers", "cache_mib")
        for name in (*counts, "video_pairs"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name}={getattr(self, name)} must not be negative")
        if self.sampling not in sampling.RULES:
            known = ", ".join(sampling.RULES)
            raise InputError(f"data.sampling={self.sampling!r} must be one of {known}")
        if self.prompt_style not in STYLES:
            known = ", ".join(STYLES)
            raise InputError(f"data.prompt_style={self.prompt_style!r} must be one of {known}")
        if self.on_error not in ON_ERROR:
            known = " or ".join(ON_ERROR)
            raise InputError(f"data.on_error={self.on_error!r} must be {known}")
        if self.reference_view not in (SAME, ANCHOR):
            raise InputError(
                f"data.reference_view={self.reference_view!r} must be {SAME} or {ANCHOR}"
            )
        if self.reference_view == ANCHOR and self.pairs_per_row > 1:
            raise InputError(
                f"data.reference_view={ANCHOR} needs data.pairs_per_row=1, not "
                f"{self.pairs_per_row}: pairs of one row are shown the same frames"
            )
        if self.answers not in (1, 2):
            raise InputError(f"data.answers={self.answers} must be 1 or 2")
        if self.phrases and self.answers == 1:
            raise InputError("data.phrases needs data.answers=2")
        if self.batch_size % self.pairs_per_row:
            raise InputError(
                f"train.batch_size={self.batch_size} is no multiple of "
                f"data.pairs_per_row={self.pairs_per_row}"
            )
        if self.video_pairs and self.batch_size // self.pairs_per_row % 2:
            raise InputError(
                f"train.batch_size / data.pairs_per_row is {self.batch_size // self.pairs_per_row};"
                f" with data.video_pairs={self.video_pairs} it must be even"
            )
        if self.mixing and (len(self.mixing) != 2 or min(self.mixing) < 0 or sum(self.mixing) <= 0):
            raise InputError(f"data.mixing={self.mixing} must be two shares, one of them above 0")
        if not 0 <= self.eval_share < 1:
            raise InputError(f"data.eval_share={self.eval_share} must be at least 0 and below 1")
        if self.eval_share and self.eval_shards:
            raise InputError("data.eval_shards and data.eval_share are both given; leave one out")

    @property
    def frames(self) -> FrameCounts:
        """Of videos: the numbers that batches have, and how often."""
        return frame_counts(self.num_frames, self.num_frames_weights)

    @property
    def rows(self) -> int:
        """Rows of a batch of all hosts, B: two for each pair of two videos."""
        return 2 * self.video_pairs + self.batch_size // self.pairs_per_row

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the batches: those of `shards`, and of each directory of `replay`."""
        directories = [self.shards, *self.replay]
        return shares_of(
            "data.replay_weights", self.replay_weights, directories, "data.shards,data.replay"
        )


class Pipeline:
    """The batches of this host, `pipeline[k]` or, decoded ahead, `iter(pipeline)`.

    Every batch holds the same share of the global batch: host `i` the `i`-th contiguous part of its
    rows, which begin with those of the pairs of two videos. A batch at the end of an epoch that no
    pairs are left for has rows with `pair_index` -1 and no target. A pair that was skipped because
    it cannot be decoded is no target either, and its `pair_index` is -2 minus its position.

    A pair of two videos has two neighbouring rows, its chosen video first. The first row has the
    answer in the place of a chosen one, the second in that of a rejected one; both have the
    `pair_index` of the pair, or of a skipped one the first alone.

    Of several numbers of frames (`data.num_frames`) a batch has one, `frames_of(k)`, and the P and
    R of that number.
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
        style = config.prompt_style
        self.processor = Processor(model, tokenizer, config.time_instruction, style)
        self.shards = open_shards(config.shards, verify=config.verify_shards)
        if not self.shards.index:
            raise InputError(f"{config.shards}: holds videos, but no pairs; prepare takes --pairs")
        _check_frames(self.shards, config, model)
        self.view, self._clips = SAME, ClipCache(config.cache_mib)
        self._videos = held_out_videos(self.shards.index, config.eval_share, config.seed)
        self.pairs = select(
            *(self.shards.index, config.mixing, config.limit, config.subset_seed, self._videos),
            two_videos=config.video_pairs > 0,
        )
        self.two_videos = TwoVideos(self._pairs_of_two_videos(), config.video_pairs)
        self._rejected_videos = RejectedVideos(self.shards)
        self._process = (process_index, process_count)
        rows = config.rows
        if rows % process_count or (config.video_pairs and rows // process_count % 2):
            raise InputError(f"{rows} rows of a batch cannot be shared by {process_count} hosts")
        self._local = slice(
            process_index * rows // process_count, (process_index + 1) * rows // process_count
        )
        positions = np.concatenate([self.pairs, self.two_videos.pairs, *self._held_out_pairs()])
        self._sizes = {n: self._measure(positions, n) for n in config.frames.counts}
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

        Their number of frames is the largest of this pipeline. Those of a share have batches of its
        sizes, and so have those of `eval_shards` if they fit.

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
        """Return the pairs of the first batches with the number of frames that they have there: a
        pipeline for every number. This one, if it has one number.
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
        # No frame is seen twice, so none is kept.
        other.view, other._clips = ANCHOR, ClipCache(0)
        positions = np.concatenate([self.pairs, self.two_videos.pairs])
        other._sizes = {n: other._measure(positions, n) for n in self.config.frames.counts}
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
        """Return the pairs of an epoch, but for those of two videos: int64 `[batches, rows, Q]` of
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
        """The shape of this host's part of a batch; of several, of the one with the most frames."""
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

        `clips` holds those of the batch that are decoded already, and gets the row's.
        """
        skipping, num_frames = self.config.on_error == "skip_and_count", self.frames_of(k)
        used, skipped = positions[positions >= 0].tolist(), 0
        for position in used:  # the pairs of a row have the same video
            try:
                clip = self._clip(self.shards.index[position], num_frames, clips)
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
        texts = self._texts(pairs, clip, self._sizes[num_frames])
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
        """Return the rows of a pair of two videos in batch `k`, what `_row` returns; -1: no pair.

        Both are empty if one of the videos cannot be decoded.
        """
        index = np.full((2, self.config.pairs_per_row), -1, np.int32)
        empty: list[_Packed] = [(None, self._no_frames, index[side]) for side in (0, 1)]
        if position < 0:
            return empty
        num_frames = self.frames_of(k)
        try:
            sides = self._rejected_videos.sides(self.shards.index[position])
            seen = [self._clip(pair, num_frames, clips) for pair in sides]
        except InputError as error:
            if self.config.on_error == "error":
                raise
            self._report_skipped(position, k, error)
            index[0, 0] = -2 - position
            return empty
        index[:, 0] = position
        rows: list[_Packed] = []
        for side, (pair, clip) in enumerate(zip(sides, seen, strict=True)):
            texts = self._texts([pair], clip, self._sizes[num_frames])
            for name, values in texts.arrays().items():
                if name in CONTINUATION:
                    values[:, 1 - side] = 0
            rows.append((texts, clip.frames, index[side]))
        return rows

    def _clip(self, pair: PairRecord, num_frames: int, clips: dict[Hashable, Clip]) -> Clip:
        """Return the clip of a pair as the model takes it."""

        def read() -> Clip:
            rule = self.config.sampling
            clip = read_clip(self.shards, pair, rule, num_frames, segment)
            try:
                rate = sampling.rate_of(clip.times, clip.duration)
                return clip._replace(frames=self.processor.resize(clip.frames, rate=rate))
            except InputError as error:
                raise InputError(f"{place_of(self.shards, pair)}: {error}") from error

        segment = self._segment(pair)
        key = pair.video_digest, segment
        if key not in clips:
            clips[key] = self._clips.get((*key, num_frames), read)
        return clips[key]

    def _segment(self, pair: PairRecord) -> Span | None:
        """Return the part of its video that a pair is shown; None: all of it."""
        return pair.segment if self.view == ANCHOR and pair.kind == "localized" else None

    def _texts(self, pairs: Sequence[PairRecord], clip: Clip, size: Size) -> Row:
        try:
            return self._built(pairs, clip, size)
        except InputError as error:
            advice = ""
            if isinstance(error, PrefixError):
                fit = self._frames_that_fit(pairs, clip, size.prefix)
                advice = f"; {fit} frames would fit instead of {len(clip.times)}"
            raise InputError(f"{place_of(self.shards, pairs[0])}: {error}{advice}") from error

    def _built(
        self,
        pairs: Sequence[PairRecord],
        clip: Clip,
        size: Size = Size(),  # noqa: B008, a constant
    ) -> Row:
        return self.processor.answers(
            [pair.asked for pair in pairs],
            [pair.answers[: self.config.answers] for pair in pairs],
            clip,
            cut="answer" if self.config.pairs_per_row == 1 else "video",
            size=size,
        )

    def _frames_that_fit(self, pairs: Sequence[PairRecord], clip: Clip, limit: int) -> int:
        """Return the most frames with which the prefix takes at most `limit` tokens."""
        fits = lambda clip: self._built(pairs, clip).prefix_ids.size <= limit  # noqa: E731
        return self.processor.most_frames(clip, fits)

    def _measure(self, positions: np.ndarray, num_frames: int) -> Size:
        """Return P and R, as given or as the longest of these pairs needs with this number of
        frames, within the model's context.
        """
        config, context = self.config, self.model.max_length
        prefix, response = config.max_prefix, config.max_response
        lengths = self._lengths(positions, num_frames)
        limits = [limit or context + 1 for limit in (prefix, response)]
        for position in positions[(lengths > limits).any(axis=1)][:1]:
            for pair in self._sides(position):  # says which limit, and what fits
                self._of_pair(pair, num_frames, Size(prefix, response))
        longest_prefix, longest_response = lengths.max(axis=0, initial=0).tolist()
        response = response or _round_up(longest_response, config.response_multiple)
        if not prefix:
            # Rounding up must not cross the model's context where the pairs themselves do not.
            rounded = _round_up(longest_prefix, config.prefix_multiple)
            prefix = min(rounded, max(longest_prefix, context - response))
        if prefix + response > context:
            text = (
                f"{prefix} prefix tokens and {response} response tokens exceed the model's context "
                f"of {context}"
            )
            if config.max_prefix:
                raise InputError(f"{text}; lower data.max_prefix or data.max_response")
            fit, limit = num_frames, context - response
            for position in positions[lengths[:, 0] > limit]:
                for pair in self._sides(position):
                    clip = self._without_frames(pair, num_frames)
                    fit = min(fit, self._frames_that_fit([pair], clip, limit))
            raise InputError(f"{text}; {fit} frames fit instead of {num_frames}")
        return Size(prefix, response)

    def _lengths(self, positions: np.ndarray, num_frames: int) -> np.ndarray:
        """Return the tokens of prefix and continuation of the pairs: int64 `[n, 2]`."""
        config, processor = self.config, self.processor
        key = {
            "shards": self.shards.fingerprint,
            "model": key_of(self.model),
            "tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest(),
            "template": [processor.time_instruction, processor.prompt_style],
            "sampling": [config.sampling, num_frames],
            "answers": [config.answers, config.pairs_per_row > 1],
        }
        if self.view != SAME:
            key["view"] = self.view

        def measure(position: int) -> tuple[int, int]:
            rows = [self._of_pair(pair, num_frames, Size()) for pair in self._sides(position)]
            prefix = max(row.prefix_ids.shape[-1] for row in rows)
            return prefix, max(row.input_ids.shape[-1] for row in rows)

        directory = self.shards.directory
        return measured(directory, key, positions, len(self.shards), measure)

    def _sides(self, position: int) -> tuple[PairRecord, ...]:
        """Return the pair at a position and, if it has two videos, the one on its rejected video,
        unless that cannot be read and is skipped for it.
        """
        pair = self.shards.index[position]
        try:
            return self._rejected_videos.sides(pair)
        except InputError:
            if self.config.on_error == "error":
                raise
            return (pair,)

    def _of_pair(self, pair: PairRecord, num_frames: int, size: Size) -> Row:
        """Return the texts of a pair with the times that its frames will have."""
        return self._texts([pair], self._without_frames(pair, num_frames), size)

    def _without_frames(self, pair: PairRecord, num_frames: int) -> Clip:
        """Return the times that training will see; approximate where the rate varies."""
        rule, segment = self.config.sampling, self._segment(pair)
        wanted = {"rule": rule, "num_frames": num_frames}
        if self.shards.manifest["sampling"] == wanted and not segment:
            return Clip(NO_FRAMES, pair.timestamps, pair.duration)
        shown = np.arange(max(1, round(pair.duration * pair.fps)))
        if segment:
            shown = sampling.within(shown / pair.fps, segment)
            if not len(shown):
                place = place_of(self.shards, pair)
                raise InputError(f"{place}: no frame of the video is in its segment {segment}")
        indices = shown[sampling.sample(rule, len(shown), pair.fps, num_frames)]
        return Clip(NO_FRAMES, (indices / pair.fps).tolist(), pair.duration)


def _check_frames(shards: Shards, config: DataConfig, model: ModelConfig) -> None:
    """Check that batches can have the numbers of frames of a config.

    Stored images are what they are; stored packets are good for any number of frames.
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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
