"""What the model is shown of the pairs of a shard directory: frames, texts and their lengths."""

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
from tokenizers import Tokenizer

from tpo_jax.data.clips import Clip, ClipCache, place_of, read_clip
from tpo_jax.data.config import ANCHOR, SAME, DataConfig
from tpo_jax.data.lengths import measured
from tpo_jax.data.processor import NO_FRAMES, Processor
from tpo_jax.data.records import PairRecord, Span
from tpo_jax.data.rows import PrefixError, Row, Size
from tpo_jax.data.shards import Shards
from tpo_jax.data.two_videos import RejectedVideos
from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig, key_of
from tpo_jax.video import sampling


class Shown:
    """Frames and texts of pairs, as a model takes them.

    Attributes:
        processor: Of the model.
        rejected_videos: The second sides of pairs of two videos.
        view: `SAME`: all of a video; `ANCHOR`: only the segment of a localized pair.
    """

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        shards: Shards,
        view: str = SAME,
    ):
        """Show the pairs of open shards.

        Args:
            config: Its time instruction is already the model's where the config has none.
        """
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._shards, self.view = shards, view
        self.processor = Processor(model, tokenizer, config.time_instruction, config.prompt_style)
        self.rejected_videos = RejectedVideos(shards)
        # Frames of another view are read only once, so none are kept.
        self._clips = ClipCache(config.cache_mib if view == SAME else 0)

    def clip(self, pair: PairRecord, num_frames: int, clips: dict[Hashable, Clip]) -> Clip:
        """Return the frames of a pair's video as the model takes them.

        Args:
            clips: Clips of the batch that are already decoded; this one is added.

        Raises:
            InputError: The video cannot be decoded, or the model refuses its shape.
        """

        def read() -> Clip:
            rule = self._config.sampling
            clip = read_clip(self._shards, pair, rule, num_frames, segment)
            try:
                rate = sampling.rate_of(clip.times, clip.duration)
                return clip._replace(frames=self.processor.resize(clip.frames, rate=rate))
            except InputError as error:
                raise InputError(f"{place_of(self._shards, pair)}: {error}") from error

        segment = self._segment(pair)
        key = pair.video_digest, segment
        if key not in clips:
            clips[key] = self._clips.get((*key, num_frames), read)
        return clips[key]

    def texts(self, pairs: Sequence[PairRecord], clip: Clip, size: Size) -> Row:
        """Return the texts of pairs of one video, padded to P and R.

        Raises:
            InputError: They are longer; the message says how many frames would fit.
        """
        try:
            return self._built(pairs, clip, size)
        except InputError as error:
            advice = ""
            if isinstance(error, PrefixError):
                fit = self._frames_that_fit(pairs, clip, size.prefix)
                advice = f"; {fit} frames would fit instead of {len(clip.times)}"
            raise InputError(f"{place_of(self._shards, pairs[0])}: {error}{advice}") from error

    def _built(
        self,
        pairs: Sequence[PairRecord],
        clip: Clip,
        size: Size = Size(),  # noqa: B008, a constant
    ) -> Row:
        return self.processor.answers(
            [pair.asked for pair in pairs],
            [pair.answers[: self._config.answers] for pair in pairs],
            clip,
            cut="answer" if self._config.pairs_per_row == 1 else "video",
            size=size,
        )

    def _frames_that_fit(self, pairs: Sequence[PairRecord], clip: Clip, limit: int) -> int:
        """Return the most frames with which the prefix takes at most `limit` tokens."""
        fits = lambda clip: self._built(pairs, clip).prefix_ids.size <= limit  # noqa: E731
        return self.processor.most_frames(clip, fits)

    def size(self, positions: np.ndarray, num_frames: int) -> Size:
        """Return P and R, as given or as the longest of these pairs needs with this number of
        frames.

        Args:
            positions: int64 `[n]`, of pairs in the shards.

        Raises:
            InputError: They exceed the model's context; the message says how many frames would fit.
        """
        config, context = self._config, self._model.max_length
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
        """Return the token counts of prefix and continuation of the pairs: int64 `[n, 2]`."""
        config, processor = self._config, self.processor
        key = {
            "shards": self._shards.fingerprint,
            "model": key_of(self._model),
            "tokenizer": hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest(),
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

        directory = self._shards.directory
        return measured(directory, key, positions, len(self._shards), measure)

    def _sides(self, position: int) -> tuple[PairRecord, ...]:
        """Return the pair at a position and, if it has two videos, the one on its rejected video,
        unless that cannot be read, for which the pair is skipped.
        """
        pair = self._shards.index[position]
        try:
            return self.rejected_videos.sides(pair)
        except InputError:
            if self._config.on_error == "error":
                raise
            return (pair,)

    def _of_pair(self, pair: PairRecord, num_frames: int, size: Size) -> Row:
        """Return the texts of a pair with the times that its frames will have."""
        return self.texts([pair], self._without_frames(pair, num_frames), size)

    def _without_frames(self, pair: PairRecord, num_frames: int) -> Clip:
        """Return a clip with the times training will see; approximate where the rate varies."""
        rule, segment = self._config.sampling, self._segment(pair)
        wanted = {"rule": rule, "num_frames": num_frames}
        if self._shards.manifest["sampling"] == wanted and not segment:
            return Clip(NO_FRAMES, pair.timestamps, pair.duration)
        shown = np.arange(max(1, round(pair.duration * pair.fps)))
        if segment:
            shown = sampling.within(shown / pair.fps, segment)
            if not len(shown):
                place = place_of(self._shards, pair)
                raise InputError(f"{place}: no frame of the video is in its segment {segment}")
        indices = shown[sampling.sample(rule, len(shown), pair.fps, num_frames)]
        return Clip(NO_FRAMES, (indices / pair.fps).tolist(), pair.duration)

    def _segment(self, pair: PairRecord) -> Span | None:
        """Return the part of its video that a pair is shown; None: all of it."""
        return pair.segment if self.view == ANCHOR and pair.kind == "localized" else None


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
