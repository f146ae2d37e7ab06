"""Questions to a model: about held-out videos, and twice about the videos that pairs are made of.

For a pair the model answers a question well and badly informed. Localized: the frames around the
segment against all other frames. Comprehensive: all frames against a sparse subset (TPO paper,
arXiv 2501.13919, section 3.1).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tpo_jax.data.clips import Clip
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Decoding, Generator
from tpo_jax.inference.model import load
from tpo_jax.study.records import Answer
from tpo_jax.study.statistics import exact
from tpo_jax.video.sampling import rate_of
from tpo_jax.worlds.world import WorldVideo

MAX_NEW_TOKENS = 12
Span = tuple[float, float]  # seconds


@dataclasses.dataclass(frozen=True)
class Query:
    """A question about a video; a segment in seconds makes it localized."""

    question: str
    segment: Span | None = None

    @property
    def kind(self) -> str:
        """Return `localized` or `comprehensive`."""
        return "comprehensive" if self.segment is None else "localized"


@dataclasses.dataclass(frozen=True)
class SelfPair:
    """The answers to query `query` of video `video` (indices), unfiltered."""

    video: int
    query: int
    kind: str
    chosen: str
    rejected: str
    told: str  # with all frames
    manipulation: str


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How many frames of the video the two sides see."""

    window: int  # the kept segment
    sparse: int  # the sparse subset


def kept_segment(timestamps: np.ndarray, segment: Span, width: int) -> np.ndarray:
    """Return the indices of `width` consecutive frames around a segment.

    Args:
        timestamps: `[F]` ascending, in seconds.
        segment: (start, end) in seconds.
        width: frames, at most `F`.

    Returns:
        int64 `[width]`, centred on the segment where the video allows it.
    """
    if not 0 < width <= len(timestamps):
        raise ValueError(f"width={width} must lie between 1 and the {len(timestamps)} frames")
    middle = np.searchsorted(timestamps, (segment[0] + segment[1]) / 2)
    start = np.clip(middle - width // 2, 0, len(timestamps) - width)
    return np.arange(start, start + width)


def removed_segment(timestamps: np.ndarray, segment: Span, width: int) -> np.ndarray:
    """Return the indices of all frames that `kept_segment` leaves out, int64 `[F - width]`."""
    return np.setdiff1d(np.arange(len(timestamps)), kept_segment(timestamps, segment, width))


def sparse(num_frames: int, kept: int) -> np.ndarray:
    """Return the indices of `kept` evenly spaced frames of `num_frames`: int64 `[kept]`."""
    if not 0 < kept <= num_frames:
        raise ValueError(f"kept={kept} must lie between 1 and the {num_frames} frames")
    return ((np.arange(kept) + 0.5) * num_frames / kept).astype(np.int64)


def generator_of(directory: Path, temperature: float = 0.0, seed: int = 0) -> Generator:
    """Load a model directory; rows are split over all devices."""
    decoding = Decoding(MAX_NEW_TOKENS, Sampling(temperature=temperature), seed, batch_rows=64)
    return load(directory, mesh={"data": -1}).generator(decoding)


def ask(
    generator: Generator, clips: Sequence[Clip], questions: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Answer all questions of all videos, every video encoded once.

    Args:
        clips: n of them, of equally many frames, in the videos' own size.
        questions: `[n][Q]`, `Q` may differ.

    Returns:
        `[n][Q]` texts.
    """
    processor = generator.model.processor
    rates = [rate_of(clip.times, clip.duration) for clip in clips]
    shown = [
        clip._replace(frames=processor.resize(clip.frames, rate=rate))
        for clip, rate in zip(clips, rates, strict=True)
    ]
    rows = [processor.prompts(*both) for both in zip(questions, shown, strict=True)]
    return generator.answer([clip.frames for clip in shown], rows)


def ask_held_out(
    generator: Generator, videos: list[WorldVideo], clips: list[Clip], seconds: int, blind: bool
) -> list[Answer]:
    """Ask every question of the held-out videos.

    Args:
        videos: of one length.
        clips: of the videos.
        seconds: length of the videos.
        blind: show the frames of the video before instead, which measures how much the words
            alone give away.
    """
    clips = clips[-1:] + clips[:-1] if blind else clips
    answers = ask(generator, clips, [[q.text for q in v.questions] for v in videos])
    return [
        Answer(
            video=v,
            seconds=seconds,
            frames=0 if blind else len(clips[v].frames),
            type=question.type,
            kind=question.kind,
            question=question.text,
            truth=question.answer,
            answer=answer,
            right=exact(answer, question.answer),
        )
        for v, video in enumerate(videos)
        for question, answer in zip(video.questions, answers[v], strict=True)
    ]


def self_pairs(
    generator: Generator,
    clips: Sequence[Clip],
    queries: Sequence[Sequence[Query]],
    conditions: Conditions,
) -> list[SelfPair]:
    """Answer every query well informed, badly informed and with all frames, in the order of videos
    and queries.

    Args:
        generator: of the answering model, usually greedy.
        clips: of n videos, `F` frames each, those that training will see.
        queries: `[n][Q]`.
        conditions: what the sides see.
    """
    F = len(clips[0].frames)
    everything, few = np.arange(F), sparse(F, conditions.sparse)
    seen: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}
    for v, asked in enumerate(queries):
        for q, query in enumerate(asked):
            if query.segment is None:
                seen[v, q] = (everything, few, everything)
            else:
                span = (np.array(clips[v].times), query.segment, conditions.window)
                seen[v, q] = (kept_segment(*span), removed_segment(*span), everything)
    names = {
        "localized": f"segment kept ({conditions.window} frames) / removed",
        "comprehensive": f"all {F} frames / {conditions.sparse}",
    }
    said = _answers(generator, clips, queries, seen)
    found = []
    for (v, q), views in seen.items():
        chosen, rejected, told = (said[v, q, view.tobytes()] for view in views)
        kind = queries[v][q].kind
        found.append(SelfPair(v, q, kind, chosen, rejected, told, names[kind]))
    return found


def _answers(
    generator: Generator,
    clips: Sequence[Clip],
    queries: Sequence[Sequence[Query]],
    views: Mapping[tuple[int, int], Iterable[np.ndarray]],
) -> dict[tuple[int, int, bytes], str]:
    """Return an answer per video, query and view of it; queries that share a view share its
    encoding.
    """
    rows: dict[int, dict[tuple[int, bytes], list[int]]] = defaultdict(lambda: defaultdict(list))
    for (v, q), several in views.items():
        for view, frames in {shown.tobytes(): len(shown) for shown in several}.items():
            rows[frames][v, view].append(q)
    answers = {}
    for _, group in sorted(rows.items()):
        # Rows of like numbers of questions share a batch, so that few continuations are padding.
        for together in _by_count(group.items()):
            seen = [np.frombuffer(view, np.int64) for (_, view), _ in together]
            texts = ask(
                generator,
                [_part(clips[v], i) for ((v, _), _), i in zip(together, seen, strict=True)],
                [[queries[v][q].question for q in asked] for (v, _), asked in together],
            )
            for ((v, view), asked), row in zip(together, texts, strict=True):
                answers.update({(v, q, view): text for q, text in zip(asked, row, strict=True)})
    return answers


def _part(clip: Clip, indices: np.ndarray) -> Clip:
    """Return some frames of a clip."""
    times = [clip.times[i] for i in indices]
    return clip._replace(frames=clip.frames[indices], times=times)


def _by_count(rows: Iterable) -> list[list]:
    """Split rows into those with one question and those with several."""
    rows = list(rows)
    single = [row for row in rows if len(row[1]) == 1]
    several = [row for row in rows if len(row[1]) > 1]
    return [group for group in (single, several) if group]
