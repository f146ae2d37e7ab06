"""The roles of a curation run played by rules, on the embedded world whose truth is known.

The captioner says what happens in its span, the question writer asks what the world can be asked,
the answerer is right exactly when its frames show the evidence in the true order, save for a
share of slips, and the judge compares with the truth and turns a share of its verdicts round.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tpo_jax.curation.speakers import Failure, Request, seed_of
from tpo_jax.worlds.questions import FAMILIES
from tpo_jax.worlds.timeline import FPS, Timeline, make_timeline


class Rules:
    """A back end for any role.

    Args:
        role: which.
        settings: section `rules` of the config.
    """

    def __init__(self, role: str, settings: ConfigDict):
        self.reply = {
            "captioner": self._caption,
            "questioner": self._question,
            "answerer": self._answer,
            "judge": self._judge,
        }[role]
        self.world_seed, self.slips = settings.world_seed, settings.slips
        self.judge_slips = settings.judge_slips

    def replies(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """One after the other."""
        for request in requests:
            try:
                yield request, self.reply(request)
            except ValueError as error:
                yield request, Failure(str(error))

    def _timeline(self, video: str, seconds: int) -> Timeline:
        if not (name := Path(video).stem).isdecimal():
            raise ValueError(f"{video}: not a video of the embedded world")
        return make_timeline(self.world_seed, int(name), seconds)

    def _of(self, request: Request) -> Timeline:
        facts = request.facts
        return self._timeline(facts["video"], round(facts["duration"] * FPS))

    def _caption(self, request: Request) -> str:
        """All true sentences about what lies wholly inside the span."""
        timeline = self._of(request)
        lines = [
            f"{text} {answer}"
            for name in FAMILIES
            for text, answer, segment in _candidates(timeline, name)
            if _inside(segment, request.facts["segment"])
        ]
        return "\n".join(sorted(set(lines))) or "Nothing happens."

    def _question(self, request: Request) -> str:
        span = request.facts["segment"]
        found = [
            (text, answer)
            for text, answer, segment in _candidates(self._of(request), request.facts["type"])
            if _inside(segment, span) and (segment is None) == (span is None)
        ]
        if not found:
            return "None"
        text, answer = found[request.seed % len(found)]
        return f"Q: {text}\nA: {answer}"

    def _answer(self, request: Request) -> str:
        facts, clip = request.facts, request.clip
        if clip is None:
            raise ValueError("an answer needs frames")
        truth, asked = facts["reference"], self._of(request)
        same_video = clip.path.name == Path(facts["video"]).name
        times = np.arange(asked.seconds) / FPS
        seen = times[clip.view.indices(times)]
        evidence = [
            segment
            for text, answer, segment in _candidates(asked, facts["type"])
            if (text, answer) == (facts["question"], truth)
        ]
        if evidence and evidence[0] is not None:
            start, end = evidence[0]
            inside = seen[(seen >= start) & (seen < end)]
            clear = len(inside) >= max(1, (end - start) / 4)
        else:
            # All of the video: no longer gap than a world's events last.
            inside = seen
            clear = bool(np.diff(np.sort(seen), prepend=0, append=asked.seconds).max() <= 6)
        clear = clear and same_video and bool((np.diff(inside) > 0).all())
        rng = np.random.default_rng(request.seed)
        if clear and rng.random() >= self.slips:
            return truth
        # A guess in the form of the truth, from the answers of any world.
        guesses = sorted(
            {
                answer
                for index in range(20)
                for text, answer, _ in _candidates(
                    make_timeline(self.world_seed + 1, index, 96), facts["type"]
                )
                if (" " in answer) == (" " in truth) and answer.endswith(".") == truth.endswith(".")
            }
        )
        return guesses[int(rng.integers(len(guesses)))] if guesses else "I do not know."

    def _judge(self, request: Request) -> str:
        facts = request.facts
        right, other = (facts[side] == facts["reference"] for side in ("chosen", "rejected"))
        if np.random.default_rng(request.seed).random() < self.judge_slips:
            right, other = (False, True) if right and not other else (True, False)
        better = "Equally" if right == other else ("Yes" if right else "No")
        return f"1: {better}\n2: No\n3: {'Yes' if right else 'No'}"


def _candidates(timeline: Timeline, name: str):
    """(question, answer, segment) of all that can be asked of a type, in both wordings."""
    for family in FAMILIES[name]:
        rng = np.random.default_rng(seed_of("rules", timeline.seconds, len(timeline.events)))
        for sentence, bare, segment in family(timeline, rng):
            yield *sentence, segment
            yield *bare, segment


def _inside(segment, span) -> bool:
    return span is None or (segment is not None and span[0] <= segment[0] and segment[1] <= span[1])
