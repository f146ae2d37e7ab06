"""Scripted replies for the synthetic world, whose truth is known: a client for any role.

The captioner says what happens in its segment, and the question writer asks one of the world's
questions. The answerer is right exactly when its frames show the evidence in the true order, except
for an error rate (`rules.slips`). The judge compares with the truth and flips a share of its
verdicts (`rules.judge_slips`).
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tpo_jax.curation.clients import Failure, Replies, Request
from tpo_jax.curation.config import Rules
from tpo_jax.curation.seeds import seed_of
from tpo_jax.curation.units import Unit
from tpo_jax.worlds.questions import QUESTION_TYPES
from tpo_jax.worlds.timeline import FPS, Timeline, make_timeline

Span = tuple[float, float]
GUESS_WORLDS = 20  # timelines of another seed that wrong answers are drawn from


class WorldClient:
    """Replies to the requests of one role, one after the other.

    Args:
        role: One of `config.ROLES`.
        settings: Section `rules` of the config.
    """

    def __init__(self, role: str, settings: Rules):
        self._reply = {
            "captioner": self._caption,
            "questioner": self._question,
            "answerer": self._answer,
            "judge": self._judge,
        }[role]
        self._settings = settings

    def replies(self, requests: Iterable[Request]) -> Replies:
        """Yield a reply to every request."""
        for request in requests:
            try:
                yield request, self._reply(request)
            except ValueError as error:
                yield request, Failure(str(error))

    def _timeline(self, unit: Unit) -> Timeline:
        if not (name := Path(unit.video).stem).isdecimal():
            raise ValueError(f"{unit.video}: not a video of the synthetic world")
        return make_timeline(self._settings.world_seed, int(name), round(unit.duration * FPS))

    def _caption(self, request: Request) -> str:
        """Return all true sentences about what lies entirely inside the segment."""
        timeline = self._timeline(request.unit)
        lines = [
            f"{text} {answer}"
            for name in QUESTION_TYPES
            for text, answer, segment in _candidates(timeline, name)
            if _inside(segment, request.unit.segment)
        ]
        return "\n".join(sorted(set(lines))) or "Nothing happens."

    def _question(self, request: Request) -> str:
        span = request.unit.segment
        found = [
            (text, answer)
            for text, answer, segment in _candidates(
                self._timeline(request.unit), request.unit.type
            )
            if _inside(segment, span) and (segment is None) == (span is None)
        ]
        if not found:
            return "None"
        text, answer = found[request.seed % len(found)]
        return f"Q: {text}\nA: {answer}"

    def _answer(self, request: Request) -> str:
        truth = request.unit.reference
        rng = np.random.default_rng(request.seed)
        if self._shows_evidence(request) and rng.random() >= self._settings.slips:
            return truth
        # A guess with the form of the truth, drawn from the answers of other worlds.
        guesses = [
            answer
            for answer in _answers(self._settings.world_seed + 1, request.unit.type)
            if (" " in answer) == (" " in truth) and answer.endswith(".") == truth.endswith(".")
        ]
        return guesses[int(rng.integers(len(guesses)))] if guesses else "I do not know."

    def _shows_evidence(self, request: Request) -> bool:
        """Return whether the clip shows what the question is about, in the true order."""
        unit, clip = request.unit, request.clip
        if clip is None:
            raise ValueError("an answer needs frames")
        timeline = self._timeline(unit)
        times = np.arange(timeline.seconds) / FPS
        shown = times[clip.view.indices(times)]
        evidence = [
            segment
            for text, answer, segment in _candidates(timeline, unit.type)
            if (text, answer) == (unit.question, unit.reference)
        ]
        if evidence and evidence[0] is not None:
            start, end = evidence[0]
            shown = shown[(shown >= start) & (shown < end)]
            enough = len(shown) >= max(1, (end - start) / 4)
        else:
            # The whole video is the evidence: no gap may be longer than an event.
            enough = bool(np.diff(np.sort(shown), prepend=0, append=timeline.seconds).max() <= 6)
        same_video = clip.path.name == Path(unit.video).name
        return enough and same_video and bool((np.diff(shown) > 0).all())

    def _judge(self, request: Request) -> str:
        unit = request.unit
        right, other = (answer == unit.reference for answer in (unit.chosen, unit.rejected))
        if np.random.default_rng(request.seed).random() < self._settings.judge_slips:
            right, other = (False, True) if right and not other else (True, False)
        better = "Equally" if right == other else ("Yes" if right else "No")
        return f"1: {better}\n2: No\n3: {'Yes' if right else 'No'}"


@functools.cache
def _answers(world_seed: int, name: str) -> list[str]:
    """Return all answers to questions of a type in a few worlds, sorted."""
    worlds = (make_timeline(world_seed, index, 96) for index in range(GUESS_WORLDS))
    return sorted({answer for world in worlds for _, answer, _ in _candidates(world, name)})


def _candidates(timeline: Timeline, name: str) -> Iterator[tuple[str, str, Span | None]]:
    """Yield (question, answer, segment) of all that can be asked of a type, in both wordings."""
    for family in QUESTION_TYPES[name]:
        rng = np.random.default_rng(seed_of("rules", timeline.seconds, len(timeline.events)))
        for sentence, bare, segment in family(timeline, rng):
            yield *sentence, segment
            yield *bare, segment


def _inside(segment: Span | None, span: Span | None) -> bool:
    return span is None or (segment is not None and span[0] <= segment[0] and segment[1] <= span[1])
