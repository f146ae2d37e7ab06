"""The preference pairs of the study: which questions are asked, and five ways to make pairs of the
answers. All of it is a function of a base model and a seed.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpo_jax.data.clips import Clip
from tpo_jax.inference.generator import Generator
from tpo_jax.io.files import write_lines
from tpo_jax.study.asking import Conditions, Query, ask, generator_of, self_pairs
from tpo_jax.study.records import Candidate, write_rows
from tpo_jax.study.stages import (
    LONG_FRAMES,
    LONG_SECONDS,
    LONG_WORLD,
    SHORT_FRAMES,
    clips_of,
    prepare,
    videos_of,
)
from tpo_jax.study.statistics import exact
from tpo_jax.worlds.questions import WorldQuestion, make_questions
from tpo_jax.worlds.timeline import make_timeline
from tpo_jax.worlds.world import WorldVideo

SOURCES = ("judged", "unjudged", "noisy", "written", "sampled")
CONDITIONS = Conditions(window=SHORT_FRAMES, sparse=4)
# More rounds over the eight types than any video has comprehensive questions.
ALL_QUESTIONS = 40


@dataclasses.dataclass(frozen=True)
class Errors:
    """Error rates of the makers of pairs.

    Attributes:
        flips: share of verdicts that the noisy judge inverts.
        slips: share of the other model's answers that are wrong.
    """

    flips: float
    slips: float


def pair_line(made: Candidate, verdict: str, model: str = "base") -> dict[str, Any]:
    """Return a candidate as a line of a pair list for `prepare`."""
    fields = dataclasses.asdict(made)
    names = ("id", "video", "prompt", "chosen", "rejected", "kind", "segment")
    provenance = {"model": model, "manipulation": made.manipulation, "verdict": verdict}
    return {name: fields[name] for name in names} | {"provenance": provenance}


def questions_of(seed: int, videos: int, localized: int) -> list[list[WorldQuestion]]:
    """Return for each long video its comprehensive questions and `localized` localized ones."""
    world, found = seed + LONG_WORLD, []
    for index in range(videos):
        timeline = make_timeline(world, index, LONG_SECONDS)
        asked = make_questions(timeline, world, index, ALL_QUESTIONS)
        near = [q for q in asked if q.kind == "localized"][:localized]
        found.append(near + [q for q in asked if q.kind == "comprehensive"])
    return found


def candidates(
    generator: Generator,
    videos: Sequence[WorldVideo],
    clips: Sequence[Clip],
    questions: Sequence[Sequence[WorldQuestion]],
) -> list[Candidate]:
    """Answer the questions about videos well and badly informed.

    Args:
        videos: n of them.
        clips: of the videos.
        questions: `[n][Q]`, `Q` may differ.
    """
    queries = [[Query(q.text, q.segment) for q in asked] for asked in questions]
    found = []
    for pair in self_pairs(generator, clips, queries, CONDITIONS):
        question = questions[pair.video][pair.query]
        found.append(
            Candidate(
                id=f"{pair.video}-{pair.query}",
                video=Path(videos[pair.video].path).name,
                type=question.type,
                kind=pair.kind,
                prompt=question.text,
                truth=question.answer,
                segment=question.segment,
                chosen=pair.chosen,
                rejected=pair.rejected,
                manipulation=pair.manipulation,
                chosen_right=exact(pair.chosen, question.answer),
                rejected_right=exact(pair.rejected, question.answer),
            )
        )
    return found


def answer(workdir: Path, seed: int, localized: int, temperature: float, draws: int) -> None:
    """Write `answers.json`: the base model's candidates for pairs.

    Args:
        workdir: of the family and the seed.
        localized: localized questions per video.
        temperature: of the well and badly informed answers.
        draws: answers drawn besides, at temperature 1 with all frames shown.
    """
    videos, base = videos_of(workdir, "long"), workdir / "base" / "model"
    questions = questions_of(seed, len(videos), localized)
    generator = generator_of(base, temperature)
    clips = clips_of(videos, LONG_FRAMES)
    rows = candidates(generator, videos, clips, questions)
    texts = [[q.text for q in asked] for asked in questions]
    answers = [  # of each draw, in the order of the candidates
        [*itertools.chain(*ask(generator_of(base, temperature=1.0, seed=draw), clips, texts))]
        for draw in range(draws)
    ]
    drawn = zip(*answers, strict=True) if draws else [()] * len(rows)
    rows = [dataclasses.replace(r, drawn=said) for r, said in zip(rows, drawn, strict=True)]
    write_rows(workdir / "answers.json", rows)


def pairs_of(
    source: str, rows: Sequence[Candidate], seed: int, errors: Errors, truth: bool = True
) -> list[dict[str, Any]]:
    """Make the pairs of a source, in a random order that the seed gives.

    `judged`: the chosen answer is true and the rejected one is not. `unjudged`: they differ.
    `noisy`: as `judged`, with a share of the verdicts inverted. `written`: another model's answer
    is chosen, true but for a share. `sampled`: of two answers drawn under the same condition one is
    true.

    Args:
        source: one of `SOURCES`.
        rows: of `answers.json`.
        errors: error rates of `noisy` and `written`.
        truth: False: the judge passes everything, for models that know nothing.
    """
    rng = np.random.default_rng([seed, SOURCES.index(source)])
    alike = defaultdict(list)  # true answers of a type and form
    for row in rows:
        alike[row.type, row.truth.endswith(".")].append(row.truth)
    found = []
    for index in rng.permutation(len(rows)).tolist():
        row = rows[index]
        chosen, rejected, model, manipulation = row.chosen, row.rejected, "base", row.manipulation
        right = row.chosen_right and not row.rejected_right
        if source == "noisy":
            right ^= bool(rng.random() < errors.flips)
        elif source == "unjudged":
            right = True
        elif source == "written":
            model, manipulation, right = "another model", "none", True
            chosen, rejected = row.truth, "none of these"
            if rng.random() < errors.slips:
                others = alike[row.type, chosen.endswith(".")]
                chosen = others[int(rng.integers(len(others)))]
        elif source == "sampled":
            manipulation = "none"
            chosen, rejected = sorted(row.drawn, key=lambda text: not exact(text, row.truth))
            right = exact(chosen, row.truth) and not exact(rejected, row.truth)
        if (right or not truth) and chosen and rejected and not exact(chosen, rejected):
            made = dataclasses.replace(
                row, chosen=chosen, rejected=rejected, manipulation=manipulation
            )
            found.append(pair_line(made, source, model))
    return found


def shards(workdir: Path, source: str, most: int, pairs: list[dict[str, Any]]) -> None:
    """Write `{source}_shards/`, at most `most` pairs of each kind."""
    kept = [
        pair
        for kind in ("localized", "comprehensive")
        for pair in [p for p in pairs if p["kind"] == kind][:most]
    ]
    write_lines(workdir / f"{source}.jsonl", kept)
    prepare(workdir, source, "long", LONG_FRAMES)
