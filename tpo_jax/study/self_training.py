"""The model answers each question twice, well and badly informed; its answers become a pair.

Localized: the frames around the segment against all other frames. Comprehensive: all frames against
a sparse subset. Both answers are the model's own, greedy (TPO paper, section 3.1).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from tpo_jax.data.prompts import build_prompts
from tpo_jax.inference.generator import Generator
from tpo_jax.study.manipulations import kept_segment, removed_segment, sparse


@dataclasses.dataclass(frozen=True)
class Query:
    """A question to be asked of a video; `segment` in seconds makes it localized."""

    question: str
    segment: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        """`localized` or `comprehensive`."""
        return "comprehensive" if self.segment is None else "localized"


@dataclasses.dataclass(frozen=True)
class SelfPair:
    """The two answers to query `query` of video `video` (indices), unfiltered."""

    video: int
    query: int
    kind: str
    chosen: str
    rejected: str
    manipulation: str


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How much of the video the two sides see, in frames."""

    window: int = 8  # frames of the kept segment
    sparse: int = 4  # frames of the sparse subset


def ask(
    generator: Generator, frames: np.ndarray, questions: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Answers to all questions of all videos, every video encoded once.

    Args:
        generator: of the answering model.
        frames: uint8 `[n, F, S, S, 3]`.
        questions: `[n][Q]`, `Q` may differ.

    Returns:
        `[n][Q]` texts.
    """
    visual = generator.config.visual_tokens(frames.shape[1])
    prompts = [
        build_prompts(generator.tokenizer, asked, visual, cut="video") for asked in questions
    ]
    return generator.answer(frames, prompts)


def self_pairs(
    generator: Generator,
    frames: np.ndarray,
    timestamps: np.ndarray,
    queries: Sequence[Sequence[Query]],
    conditions: Conditions,
) -> list[SelfPair]:
    """Both answers to every query, in the order of videos and queries.

    Args:
        generator: of the answering model, usually greedy.
        frames: uint8 `[n, F, S, S, 3]`, the frames that training will see.
        timestamps: float64 `[n, F]`, seconds.
        queries: `[n][Q]`.
        conditions: what the sides see.
    """
    F = frames.shape[1]
    everything, few = np.arange(F), sparse(F, conditions.sparse)
    seen: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for v, asked in enumerate(queries):
        for q, query in enumerate(asked):
            if query.segment is None:
                seen[v, q] = (everything, few)
            else:
                span = (timestamps[v], query.segment, conditions.window)
                seen[v, q] = (kept_segment(*span), removed_segment(*span))
    good = _answers(generator, frames, queries, {key: views[0] for key, views in seen.items()})
    bad = _answers(generator, frames, queries, {key: views[1] for key, views in seen.items()})
    names = {
        "localized": f"segment kept ({conditions.window} frames) / removed",
        "comprehensive": f"all {F} frames / {conditions.sparse}",
    }
    return [
        SelfPair(v, q, queries[v][q].kind, good[v, q], bad[v, q], names[queries[v][q].kind])
        for v, q in seen
    ]


def _answers(generator, frames, queries, views) -> dict[tuple[int, int], str]:
    """One answer per (video, query); queries that share a view of a video share its encoding."""
    rows: dict[int, dict[tuple[int, bytes], list[int]]] = defaultdict(lambda: defaultdict(list))
    for (v, q), indices in views.items():
        rows[len(indices)][v, indices.tobytes()].append(q)
    answers = {}
    for _, group in sorted(rows.items()):
        # Rows of like numbers of questions share a batch, so that few continuations are padding.
        for together in _by_count(group.items()):
            seen = [np.frombuffer(view, np.int64) for (_, view), _ in together]
            clips = np.stack([frames[v][i] for ((v, _), _), i in zip(together, seen, strict=True)])
            texts = ask(
                generator,
                clips,
                [[queries[v][q].question for q in asked] for (v, _), asked in together],
            )
            for ((v, _), asked), row in zip(together, texts, strict=True):
                answers.update({(v, q): text for q, text in zip(asked, row, strict=True)})
    return answers


def _by_count(rows: Iterable) -> list[list]:
    """Rows with one question, and rows with several."""
    rows = list(rows)
    single = [row for row in rows if len(row[1]) == 1]
    several = [row for row in rows if len(row[1]) > 1]
    return [group for group in (single, several) if group]
