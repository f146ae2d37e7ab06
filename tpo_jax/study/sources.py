"""The ways to make preference pairs of a model's answers, by name: functions of them and a seed."""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpo_jax.io.files import write_lines
from tpo_jax.study.asking import Span
from tpo_jax.study.pairs import CONDITIONS, pair_line
from tpo_jax.study.records import Candidate, read_rows
from tpo_jax.study.rows import miniature_of, tiny
from tpo_jax.study.stages import (
    LONG_FRAMES,
    LONG_SECONDS,
    SHORT_FRAMES,
    Scale,
    prepare,
    videos_of,
)
from tpo_jax.study.statistics import exact

# A source's place is part of its seed: new ones come last.
SOURCES = (
    *("judged", "thinned", "unjudged", "noisy", "written", "sampled", "partly", "two_videos"),
    "untimed",
)
SIDES = ("chosen", "rejected")
# They teach little, and without any of them what they are about is forgotten.
EASY = 4
# Pairs about it teach nothing about long videos, and cost what is known of short ones.
UNTAUGHT = "temporal reasoning"
# How a video starts and ends: what is known of it about short videos is forgotten first.
FORGOTTEN, ASKED_OF_IT = ("summarization", "localized"), 2


def pairs_of(
    source: str,
    rows: Sequence[Candidate],
    seed: int,
    error: float = 0.0,
    truth: bool = True,
    answering: str = "base",
) -> list[dict[str, Any]]:
    """Make the pairs of a source, in a random order that the seed gives.

    `judged`: the chosen answer is true and the rejected one is not. `thinned`: of those about a
    segment that the model answers the same with all frames, one in `EASY`. `untimed`: of these,
    none of the type `UNTAUGHT`. `unjudged`: they differ. `noisy`: as `judged`, with a share of the
    verdicts inverted. `written`: another model's answer is chosen, true but for a share. `sampled`:
    of two answers drawn under the same condition one is true. `partly`: of those of `judged` with
    several words to choose, one is made wrong, in both answers the same: what differs is then right
    in the chosen one, and no chosen answer is true.
    `two_videos`: as `judged`, and the chosen answers again, each with another video as rejected
    one, about which the same question has another answer.

    Args:
        source: one of `SOURCES`.
        rows: answers to the same questions well and badly informed.
        error: share of inverted verdicts, or of wrong answers of the other model.
        truth: False: the judge passes everything, for models that know nothing.
        answering: the model, for the provenance.
    """
    rng = np.random.default_rng([seed, SOURCES.index(source)])
    if source in _FROM_JUDGED:
        judged = pairs_of("judged", rows, seed, truth=truth, answering=answering)
        return _FROM_JUDGED[source](judged, rows, rng) if truth or source != "partly" else judged
    model = "another model" if source == "written" else answering
    alike = defaultdict(list)  # true answers of a type and form
    for row in rows:
        alike[row.type, row.truth.endswith(".")].append(row.truth)
    found = []
    for index in rng.permutation(len(rows)).tolist():
        row = rows[index]
        chosen, rejected, right = _answers(source, row, rng, error, alike)
        if (right or not truth) and chosen and rejected and not exact(chosen, rejected):
            made = dataclasses.replace(
                row,
                chosen=chosen,
                rejected=rejected,
                manipulation="none" if source in ("written", "sampled") else row.manipulation,
                segment=row.segment and _widened(row.segment),
            )
            found.append(pair_line(made, source, model))
    return found


def _answers(
    source: str, row: Candidate, rng: np.random.Generator, error: float, alike: Mapping
) -> tuple[str, str, bool]:
    """Return the chosen and the rejected answer to a question, and whether the judge keeps them."""
    if source == "written":
        chosen = row.truth
        if rng.random() < error:
            others = alike[row.type, chosen.endswith(".")]
            chosen = others[int(rng.integers(len(others)))]
        return chosen, "none of these", True
    if source == "sampled":
        chosen, rejected = sorted(row.drawn, key=lambda text: not exact(text, row.truth))
        return chosen, rejected, exact(chosen, row.truth) and not exact(rejected, row.truth)
    right = row.chosen_right and not row.rejected_right
    if source == "noisy":
        right ^= bool(rng.random() < error)
    return row.chosen, row.rejected, right or source == "unjudged"


def _thinned(
    pairs: Sequence[dict[str, Any]], rows: Sequence[Candidate], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return pairs without most of those whose chosen answer all frames give as well."""
    told = {row.id: row.told for row in rows if row.kind == "localized"}
    number = itertools.count(1)
    return [
        pair
        for pair in pairs
        if not exact(told.get(pair["id"], ""), pair["chosen"]) or next(number) % EASY == 0
    ]


def _untimed(
    pairs: Sequence[dict[str, Any]], rows: Sequence[Candidate], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return the pairs of `_thinned` without those of the type `UNTAUGHT`."""
    left = {row.id for row in rows if row.type != UNTAUGHT}
    return [pair for pair in _thinned(pairs, rows, rng) if pair["id"] in left]


def _widened(segment: Span) -> Span:
    """Return a segment of as many seconds as the window has frames, or more: a reference that sees
    it alone, one frame a second, then sees about as many as the base was trained on.
    """
    width = max(segment[1] - segment[0], CONDITIONS.window)
    start = min(max(0.0, sum(segment) / 2 - width / 2), LONG_SECONDS - width)
    return start, start + width


def _form(type_: str, answer: str) -> tuple[str, bool, int]:
    """Return what answers have in common that differ in words to choose alone."""
    return type_, answer.endswith("."), len(answer.split())


def _partly_wrong(
    pairs: Sequence[dict[str, Any]], rows: Sequence[Candidate], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return pairs with the same wrong word in both answers, in the place of another than one in
    which they differ; those without such a place are left out.

    Words to choose are those that true answers of a type, form and length have at a place, three
    or more.
    """
    shape = {row.id: _form(row.type, row.truth) for row in rows}
    heard: dict[tuple, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        for place, word in enumerate(row.truth.removesuffix(".").split()):
            heard[shape[row.id]][place].add(word)
    found = []
    for pair in pairs:
        known = heard[shape[pair["id"]]]
        free = [place for place in sorted(known) if len(known[place]) > 2]
        chosen, rejected = (pair[side].removesuffix(".").split() for side in SIDES)
        if len(chosen) != len(rejected) or len(chosen) != len(known):
            continue
        differ = [place for place in free if chosen[place] != rejected[place]]
        if not differ or len(free) < 2:
            continue
        kept = differ[int(rng.integers(len(differ)))]
        places = [place for place in free if place != kept]
        place = places[int(rng.integers(len(places)))]
        words = sorted(known[place] - {chosen[place]})
        chosen[place] = rejected[place] = words[int(rng.integers(len(words)))]
        end = "." * shape[pair["id"]][1]
        texts = [_articles(" ".join(words) + end) for words in (chosen, rejected)]
        found.append(pair | dict(zip(SIDES, texts, strict=True)))
    return found


def _articles(text: str) -> str:
    """Return a text with the articles that its words ask for."""
    return re.sub(r"\ban?(?= (\w))", lambda m: "an" if m[1] in "aeiou" else "a", text)


def _two_videos(
    pairs: Sequence[dict[str, Any]], rows: Sequence[Candidate], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return pairs, and pairs of two videos: the answer to a question about one of them is chosen
    there, and rejected where the same question has another answer.
    """
    truths = {row.id: row.truth for row in rows}
    alike = defaultdict(list)
    for row in rows:
        alike[row.prompt].append(row)
    found = []
    for pair in pairs:
        others = [row.video for row in alike[pair["prompt"]] if row.truth != truths[pair["id"]]]
        if others:
            made = {name: pair[name] for name in ("video", "prompt", "chosen", "provenance")}
            other = others[int(rng.integers(len(others)))]
            made |= {"id": f"{pair['id']}-video", "kind": "video", "rejected_video": other}
            found.append(made)
    return [*pairs, *found]


_FROM_JUDGED: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "thinned": _thinned,
    "untimed": _untimed,
    "partly": _partly_wrong,
    "two_videos": _two_videos,
}


def make(workdir: Path, name: str, seed: int, scale: Scale) -> None:
    """Write the shards of a row's pairs, at most `scale.pairs` of either kind: two answers or two
    videos.
    """
    row = miniature_of(name)
    rows = read_rows(workdir / f"{row.answers}.json", Candidate)
    truth, answering = scale.truth_filter, row.after or "base"
    pairs = pairs_of(row.source, rows, seed, row.error, truth, answering)
    two = [pair for pair in pairs if pair["kind"] == "video"]
    one = [pair for pair in pairs if pair["kind"] != "video"]
    write_lines(workdir / f"{row.pairs}.jsonl", one[: scale.pairs] + two[: scale.pairs])
    prepare(workdir, row.pairs, "long", LONG_FRAMES)


def replay(workdir: Path, seed: int, scale: Scale) -> None:
    """Write `replay_shards/`: questions about `scale.replay_videos` of the short videos of a base
    model's training, as many as fill a row, and of each video `ASKED_OF_IT` of `FORGOTTEN` first.

    True answers are chosen, and rejected other answers to such questions: a constant one, as in
    `short_shards`, would soon be as unlikely as it can get.

    Args:
        workdir: holds the short videos.
        seed: draws the rejected answers.
    """
    shown, rng = videos_of(workdir, "short")[: scale.replay_videos], np.random.default_rng(seed)
    alike = defaultdict(set)
    for question in itertools.chain(*(video.questions for video in shown)):
        alike[_form(question.type, question.answer)].add(question.answer)
    pairs, each = [], tiny().data.pairs_per_row
    for v, video in enumerate(shown):
        first = [q for q in video.questions if (q.type, q.kind) == FORGOTTEN][:ASKED_OF_IT]
        others = [q for q in video.questions if q not in first]
        for q, asked in enumerate([*first, *others][:each]):
            wrong = alike[_form(asked.type, asked.answer)] - {asked.answer}
            if wrong:
                rejected = str(rng.choice(sorted(wrong)))
                texts = {"prompt": asked.text, "chosen": asked.answer, "rejected": rejected}
                name = Path(video.path).name
                pairs.append({"id": f"{v}-{q}", "video": name, "kind": "other", **texts})
    write_lines(workdir / "replay.jsonl", pairs)
    prepare(workdir, "replay", "short", SHORT_FRAMES, "fps")
