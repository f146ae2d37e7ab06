"""Questions about a timeline, with their true answers.

The eight types are those of the paper's Figure 6. A question is *localized* when one short segment
answers it, *comprehensive* when it needs the whole video. Each is asked in words that call for a
sentence or in words that call for a bare answer; the wording alone decides, so that every question
has one answer. An event that is asked about by its hue is one of at least two in the video, so that
no answer is found without looking for the hue; only the shortest videos are asked about one. A
needle is the only one of its video.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tpo_jax.worlds.timeline import (
    CORNERS,
    DIGITS,
    FPS,
    HUES,
    MOTIONS,
    SHAPES,
    Event,
    Timeline,
    WorldNeedle,
    generator,
)

TYPES = (
    "temporal reasoning",
    "action",
    "causal",
    "information extraction",
    "descriptive",
    "summarization",
    "object",
    "spatial",
)


@dataclasses.dataclass(frozen=True)
class WorldQuestion:
    """A question, its one true answer, and the segment in seconds that shows it (None: all)."""

    type: str
    kind: str  # "localized" or "comprehensive"
    text: str
    answer: str
    segment: tuple[float, float] | None


# Videos shorter than this, in seconds, mostly have one event; they are asked about it.
GLANCE = 16
# (question, answer) in a sentence, (question, answer) in bare words, segment
Candidate = tuple[tuple[str, str], tuple[str, str], tuple[float, float] | None]


def _segment(first: Event | WorldNeedle, last: Event | WorldNeedle) -> tuple[float, float]:
    return first.start / FPS, last.end / FPS


def _several(found: Sequence[Event], timeline: Timeline) -> Sequence[Event]:
    """Return what can be asked about by its hue: nothing where a longer video has only one."""
    return found if len(found) > 1 or timeline.seconds < GLANCE else ()


def _name(event: Event) -> str:
    return f"{HUES[event.hue]} {SHAPES[event.shape]}"


def _a(event: Event) -> str:
    """Return the object with its article: "an orange cross"."""
    return f"{'an' if HUES[event.hue][0] in 'aeiou' else 'a'} {_name(event)}"


def _neighbours(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    for first, second in zip(timeline.events, timeline.events[1:], strict=False):
        for word, key, event in (("after", first, second), ("before", second, first)):
            hue = HUES[key.hue]
            yield (
                (f"What appears right {word} {hue}?", f"It is {_a(event)}."),
                (f"Name what comes {word} {hue}.", _name(event)),
                _segment(first, second),
            )


def _order(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    if len(timeline.events) < 3:
        return
    chosen = sorted(rng.choice(len(timeline.events), 3, replace=False).tolist())
    events = [timeline.events[i] for i in chosen]
    a, b, c = (HUES[events[i].hue] for i in rng.permutation(3))
    for word, event in (("first", events[0]), ("last", events[-1])):
        yield (
            (f"Who is {word}: {a}, {b}, {c}?", f"The {_name(event)}."),
            (f"The {word} of {a}, {b}, {c}?", _name(event)),
            None,
        )


def _action(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    for event in _several(timeline.events, timeline):
        hue, motion = HUES[event.hue], MOTIONS[event.motion]
        yield (
            (f"What does the {hue} shape do?", f"It moves {motion}."),
            (f"Which way does {hue} move?", motion),
            _segment(event, event),
        )


def _effect(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    for event in _several([e for e in timeline.events if e.border is not None], timeline):
        assert event.border is not None
        hue, border = HUES[event.hue], HUES[event.border]
        yield (
            (f"What does the {hue} shape cause?", f"The border turns {border}."),
            (f"Which border does {hue} cause?", border),
            _segment(event, event),
        )


def _digit(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    if needle := timeline.needle:
        hue, digit = HUES[needle.hue], DIGITS[needle.digit]
        yield (
            (f"Which number is written in {hue}?", f"The number is {digit}."),
            (f"Read the {hue} number.", digit),
            _segment(needle, needle),
        )


def _description(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    for event in _several(timeline.events, timeline):
        hue, shape, motion = HUES[event.hue], SHAPES[event.shape], MOTIONS[event.motion]
        yield (
            (f"Describe the {hue} shape.", f"A {shape} that moves {motion}."),
            (f"Describe {hue} in brief.", f"{shape} moving {motion}"),
            _segment(event, event),
        )


def _ends(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    if len(timeline.events) < 2:
        return
    for verb, event in (("start", timeline.events[0]), ("end", timeline.events[-1])):
        yield (
            (f"How does the video {verb}?", f"It {verb}s with {_a(event)}."),
            (f"Name what is at the {verb}.", _name(event)),
            _segment(event, event),
        )


def _majority(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    counts = Counter(event.shape for event in timeline.events).most_common(2)
    if counts and counts[0][1] > (counts[1][1] if len(counts) > 1 else 1):
        shape = SHAPES[counts[0][0]]
        yield (
            ("What is the video about?", f"Mostly about the {shape}."),
            ("Name the most frequent shape.", shape),
            None,
        )


def _shape(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    for event in _several(timeline.events, timeline):
        hue, shape = HUES[event.hue], SHAPES[event.shape]
        yield (
            (f"What is the {hue} thing?", f"It is a {shape}."),
            (f"Which shape is {hue}?", shape),
            _segment(event, event),
        )


def _corner(timeline: Timeline, rng: np.random.Generator) -> Iterator[Candidate]:
    for event in _several(timeline.events, timeline):
        hue, corner = HUES[event.hue], CORNERS[event.corner]
        yield (
            (f"Where is the {hue} shape?", f"It is in the {corner}."),
            (f"Which corner holds {hue}?", corner),
            _segment(event, event),
        )


QUESTION_TYPES: dict[
    str, tuple[Callable[[Timeline, np.random.Generator], Iterator[Candidate]], ...]
] = {
    "temporal reasoning": (_neighbours, _order),
    "action": (_action,),
    "causal": (_effect,),
    "information extraction": (_digit,),
    "descriptive": (_description,),
    "summarization": (_ends, _majority),
    "object": (_shape,),
    "spatial": (_corner,),
}


# Causes are left to curation: a base model of the study's size does not learn them in training.
STUDIED = tuple(name for name in TYPES if name != "causal")


def make_questions(
    timeline: Timeline, seed: int, index: int, count: int = 8
) -> list[WorldQuestion]:
    """Return up to `count` different questions about one video, evenly over the types in `STUDIED`.

    Args:
        timeline: of video `index` of the world of `seed`.
        seed: the world's.
        index: the video's.
        count: fewer are returned when the video is too short.

    Returns:
        Questions in random order; a pure function of the arguments.
    """
    rng = generator(seed, index, 1)
    pools = {name: _pool(name, timeline, rng) for name in STUDIED}
    questions: list[WorldQuestion] = []
    while len(questions) < count and any(pools.values()):
        for i in rng.permutation(len(STUDIED)):
            if pools[STUDIED[i]] and len(questions) < count:
                questions.append(pools[STUDIED[i]].pop())
    return questions


def _pool(name: str, timeline: Timeline, rng: np.random.Generator) -> list[WorldQuestion]:
    """Return every question of one type in random order, its families alternating from the end.

    From the end, every question comes in one wording before any comes in the other.
    """
    ranked = []
    for family in QUESTION_TYPES[name]:
        candidates = list(family(timeline, rng))
        for rank, i in enumerate(rng.permutation(len(candidates))):
            ranked.append((rank + rng.random(), candidates[i]))
    first, second = list[WorldQuestion](), list[WorldQuestion]()
    for _, (sentence, bare, segment) in sorted(ranked, key=lambda item: -item[0]):
        kind = "comprehensive" if segment is None else "localized"
        wordings = (sentence, bare) if rng.random() < 0.5 else (bare, sentence)
        for pool, (text, answer) in zip((first, second), wordings, strict=True):
            pool.append(WorldQuestion(name, kind, text, answer, segment))
    return second + first
