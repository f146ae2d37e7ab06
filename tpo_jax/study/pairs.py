"""The questions of the study that preference pairs are made of, and a model's answers to them: a
function of the model and a seed.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo_jax.data.clips import Clip
from tpo_jax.inference.generator import Generator
from tpo_jax.study.asking import Conditions, Query, ask, generator_of, self_pairs
from tpo_jax.study.records import Candidate, write_rows
from tpo_jax.study.rows import miniature_of, rounds_before
from tpo_jax.study.stages import (
    LONG_FRAMES,
    LONG_SECONDS,
    LONG_WORLD,
    QUESTIONS_OF_LONG,
    Scale,
    clips_of,
    videos_of,
)
from tpo_jax.study.statistics import exact
from tpo_jax.worlds.questions import WorldQuestion, make_questions
from tpo_jax.worlds.timeline import make_timeline
from tpo_jax.worlds.world import WorldVideo

CONDITIONS = Conditions(window=9, sparse=4)


def pair_line(made: Candidate, verdict: str, model: str = "base") -> dict[str, Any]:
    """Return a candidate as a line of a pair list for `prepare`."""
    fields = dataclasses.asdict(made)
    names = ("id", "video", "prompt", "chosen", "rejected", "kind", "segment")
    provenance = {"model": model, "manipulation": made.manipulation, "verdict": verdict}
    return {name: fields[name] for name in names} | {"provenance": provenance}


def questions_of(seed: int, videos: int, before: int) -> list[list[WorldQuestion]]:
    """Return the questions about each long video, after those of so many rounds before."""
    world, n = seed + LONG_WORLD, QUESTIONS_OF_LONG
    timelines = (make_timeline(world, index, LONG_SECONDS) for index in range(videos))
    return [
        make_questions(timeline, world, index, (before + 1) * n)[before * n :]
        for index, timeline in enumerate(timelines)
    ]


def candidates(
    generator: Generator,
    videos: Sequence[WorldVideo],
    clips: Sequence[Clip],
    questions: Sequence[Sequence[WorldQuestion]],
) -> list[Candidate]:
    """Answer the questions about videos well informed, badly informed and with all frames.

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
                told=pair.told,
                chosen_right=exact(pair.chosen, question.answer),
                rejected_right=exact(pair.rejected, question.answer),
            )
        )
    return found


def answer(workdir: Path, name: str, seed: int, scale: Scale, draws: int = 0) -> None:
    """Write the answers that the pairs of a row are made of: the base's, or those of the model of
    the round before, which is asked other questions.

    Args:
        workdir: of the family and the seed.
        name: of the row.
        draws: answers of the base drawn besides, at temperature 1 with all frames shown.
    """
    row, before = miniature_of(name), len(rounds_before(name))
    videos, base = videos_of(workdir, "long"), workdir / row.answering / "model"
    questions = questions_of(seed, len(videos), before)
    clips = clips_of(videos, LONG_FRAMES)
    rows = candidates(generator_of(base, scale.temperature), videos, clips, questions)
    texts = [[q.text for q in asked] for asked in questions]
    answers = [  # of each draw, in the order of the candidates
        [*itertools.chain(*ask(generator_of(base, temperature=1.0, seed=draw), clips, texts))]
        for draw in range(0 if before else draws)
    ]
    drawn = zip(*answers, strict=True) if answers else [()] * len(rows)
    rows = [dataclasses.replace(r, drawn=said) for r, said in zip(rows, drawn, strict=True)]
    write_rows(workdir / f"{row.answers}.json", rows)
