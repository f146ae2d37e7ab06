"""The preference pairs of the study: which questions are asked, and five ways to make pairs of the
answers. All of it is a function of a base model and a seed.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from tpo_jax.io.files import write_json
from tpo_jax.study import miniature
from tpo_jax.study.scoring import exact
from tpo_jax.study.self_training import Conditions, Query, ask, self_pairs
from tpo_jax.worlds.questions import Question, make_questions
from tpo_jax.worlds.timeline import make_timeline

SOURCES = ("judged", "unjudged", "noisy", "written", "sampled")
CONDITIONS = Conditions(window=miniature.SHORT_FRAMES, sparse=4)
# More rounds over the eight types than any video has comprehensive questions.
ALL_QUESTIONS = 40


def questions_of(seed: int, videos: int, localized: int) -> list[list[Question]]:
    """Of each long video every comprehensive question and the first `localized` localized ones."""
    world, found = seed + miniature.LONG_WORLD, []
    for index in range(videos):
        timeline = make_timeline(world, index, miniature.LONG_SECONDS)
        asked = make_questions(timeline, world, index, ALL_QUESTIONS)
        near = [q for q in asked if q.kind == "localized"][:localized]
        found.append(near + [q for q in asked if q.kind == "comprehensive"])
    return found


def answer(
    workdir: Path, model: str, seed: int, localized: int, temperature: float, draws: int
) -> None:
    """`answers.json`: per question the base model's well and badly informed answer, drawn at
    `temperature`, and `draws` drawn at temperature 1 with all frames seen.
    """
    videos = miniature.videos_of(workdir, "long")
    frames, times = miniature.frames_of(videos, miniature.LONG_FRAMES, model)
    questions = questions_of(seed, len(videos), localized)
    base = workdir / "base" / "model"
    speaker = miniature.generator_of(base, temperature)
    queries = [[Query(q.text, q.segment) for q in asked] for asked in questions]
    pairs = self_pairs(speaker, frames, times, queries, CONDITIONS)
    texts = [[q.text for q in asked] for asked in questions]
    drawn = [
        ask(miniature.generator_of(base, temperature=1.0, seed=draw), frames, texts)
        for draw in range(draws)
    ]
    rows = []
    for pair in pairs:
        question = questions[pair.video][pair.query]
        rows.append(
            {
                "id": f"{pair.video}-{pair.query}",
                "video": Path(videos[pair.video].path).name,
                "type": question.type,
                "kind": question.kind,
                "prompt": question.text,
                "truth": question.answer,
                "segment": question.segment,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "manipulation": pair.manipulation,
                "drawn": [answers[pair.video][pair.query] for answers in drawn],
                "chosen_right": exact(pair.chosen, question.answer),
                "rejected_right": exact(pair.rejected, question.answer),
            }
        )
    write_json(workdir / "answers.json", rows)


def pairs_of(
    source: str, rows: list[dict], seed: int, flips: float, slips: float, truth: bool = True
) -> list[dict]:
    """The pairs of a source, in a random order that the seed gives.

    `judged`: the chosen answer is true and the rejected one is not. `unjudged`: they differ.
    `noisy`: as `judged`, a share `flips` of the verdicts turned round. `written`: another model's
    answer is chosen, true but for a share `slips`. `sampled`: of two answers drawn under the same
    condition one is true.

    Args:
        source: one of `SOURCES`.
        rows: of `answers.json`.
        seed: of all draws.
        flips: share of verdicts.
        slips: share of answers.
        truth: False: the judge lets everything pass, for models that know nothing.
    """
    rng = np.random.default_rng([seed, SOURCES.index(source)])
    alike = defaultdict(list)
    for row in rows:
        alike[row["type"], row["truth"].endswith(".")].append(row["truth"])
    found = []
    for index in rng.permutation(len(rows)).tolist():
        row = rows[index]
        chosen, rejected = row["chosen"], row["rejected"]
        right = row["chosen_right"] and not row["rejected_right"]
        if source == "noisy":
            right ^= bool(rng.random() < flips)
        elif source == "unjudged":
            right = True
        elif source == "written":
            chosen, rejected, right = row["truth"], "none of these", True
            if rng.random() < slips:
                others = alike[row["type"], chosen.endswith(".")]
                chosen = others[int(rng.integers(len(others)))]
        elif source == "sampled":
            chosen, rejected = sorted(row["drawn"], key=lambda text: not exact(text, row["truth"]))
            right = exact(chosen, row["truth"]) and not exact(rejected, row["truth"])
        if (right or not truth) and chosen and rejected and not exact(chosen, rejected):
            made = {"model": "base", "manipulation": row["manipulation"], "verdict": source}
            if source == "written":
                made = {"model": "another model", "manipulation": "none", "verdict": source}
            elif source == "sampled":
                made["manipulation"] = "none"
            kept = ("id", "video", "prompt", "kind", "segment")
            found.append(
                {name: row[name] for name in kept}
                | {"chosen": chosen, "rejected": rejected, "provenance": made}
            )
    return found


def shards(workdir: Path, source: str, most: int, pairs: list[dict]) -> None:
    """`{source}_shards/`, at most `most` pairs of each kind."""
    kept = [
        pair
        for kind in ("localized", "comprehensive")
        for pair in [p for p in pairs if p["kind"] == kind][:most]
    ]
    miniature.write_pairs(workdir / f"{source}.jsonl", kept)
    miniature.prepare(workdir, source, "long", miniature.LONG_FRAMES)
