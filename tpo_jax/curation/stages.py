"""The six stages from a video file to a judged pair: what a model is asked, what its reply means.

Each stage turns one unit into the units of the next stage, drops it, or fails it.
"""

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tpo_jax.curation import templates
from tpo_jax.curation.clients import Request, VideoView
from tpo_jax.curation.config import Config
from tpo_jax.curation.seeds import seed_of
from tpo_jax.curation.units import Unit
from tpo_jax.curation.videos import probe_video
from tpo_jax.curation.views import RANDOM, SPANS, View, parse


class Dropped(Exception):
    """A unit is filtered out, which is not an error; the text says why."""


class Stage(abc.ABC):
    """One stage of a run.

    Attributes:
        name: Of the stage and its journal.
        sections: Of the config that its results depend on, besides those of earlier stages.
        adds: Fields of `Unit` that it sets and its journal stores.
        role: Whose client it asks; "" if it asks no model.
    """

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    adds: ClassVar[tuple[str, ...]]
    role: ClassVar[str] = ""

    def __init__(self, config: Config):
        self.config, self.seed = config, config.segments.seed
        self.folder = Path(config.videos.folder)

    def split(self, unit: Unit) -> list[Unit]:
        """Return the units that the stage works on, made from one of the stage before."""
        return [unit]

    def requests(self, unit: Unit) -> list[Request]:
        """Return what is asked about a unit.

        Raises:
            ValueError: The unit fails.
        """
        return []

    @abc.abstractmethod
    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return the units of the next stage.

        Args:
            unit: A unit of this stage.
            replies: To its `requests`, in their order.

        Raises:
            Dropped: The unit is filtered out.
            ValueError: The unit fails; the text says why.
        """

    def item(self, unit: Unit) -> dict[str, Any]:
        """Return the fields of a finished unit that the journal stores."""
        return {name: getattr(unit, name) for name in ("id", *self.adds)}

    def _request(self, unit: Unit, part: str, prompt: str, clip: VideoView | None) -> Request:
        name = f"{unit.id}/{part}"
        return Request(name, prompt, clip, seed_of(self.seed, self.role, name), unit)

    def _clip(self, unit: Unit, view: str, part: str, video: str = "") -> VideoView:
        """Return what the stage's role sees of a video through a view."""
        bare = parse(view)[0]
        span = unit.segment if bare in SPANS else None
        # Seeded by segment, not by question: questions that see the same frames share an encoding.
        draw = seed_of(self.seed, part, unit.video, str(span)) if bare in RANDOM else 0
        count = self.config.role(self.role).num_frames
        return VideoView(self.folder / (video or unit.video), View(view, count, span, draw))

    def _subject(self, unit: Unit) -> VideoView | None:
        """Return the part of the video that the unit is about; None for a role of 0 frames."""
        if not self.config.role(self.role).num_frames:
            return None
        return self._clip(unit, "segment" if unit.segment else "full", self.role)


class Videos(Stage):
    """Probe every file."""

    name, sections = "videos", ("videos",)
    adds = ("num_frames", "fps", "width", "height", "duration")

    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return the video with its length and size."""
        if unit.twin:
            raise ValueError(f"its id is already that of {unit.twin}")
        info = probe_video(self.folder / unit.video)
        if info.duration < self.config.videos.min_seconds:
            raise Dropped(f"shorter than {self.config.videos.min_seconds} s")
        return [dataclasses.replace(unit, **info._asdict())]


class Segments(Stage):
    """Draw the segments that are asked about, and the whole video as many times as configured."""

    name, sections = "segments", ("segments",)
    adds = ("kind", "segment")

    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return one unit per segment."""
        rng = np.random.default_rng(seed_of(self.seed, "segments", unit.id))
        settings = self.config.segments
        # Two frames at least, so that neither the segment nor the rest is empty.
        shortest = max(settings.min_seconds, 2 / unit.fps)
        longest = min(settings.max_seconds, settings.max_share * unit.duration)
        drawn: list[tuple[str, tuple[float, float] | None]] = []
        for _ in range(settings.localized if shortest <= longest else 0):
            length = rng.uniform(shortest, longest)
            start = rng.uniform(0, unit.duration - length)
            drawn.append(("localized", (round(start, 3), round(start + length, 3))))
        drawn += [("comprehensive", None)] * settings.comprehensive
        if not drawn:
            share = f"{settings.max_share:g} of the video"
            raise Dropped(f"no segment of {shortest:g} s fits into {share}")
        return [
            dataclasses.replace(unit, id=f"{unit.id}#{i}", kind=kind, segment=segment)
            for i, (kind, segment) in enumerate(drawn)
        ]


class Captions(Stage):
    """Describe every segment."""

    name, sections, role = "captions", ("captioner",), "captioner"
    adds = ("caption",)

    def requests(self, unit: Unit) -> list[Request]:
        """Ask for a description."""
        start, end = unit.span
        name = self.config.captioner.prompt
        prompt = templates.fill(name, start=f"{start:.1f}", end=f"{end:.1f}")
        return [self._request(unit, "caption", prompt, self._subject(unit))]

    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return the segment with its caption."""
        return [dataclasses.replace(unit, caption=templates.clean(replies[0], "the caption"))]


class Questions(Stage):
    """Write questions with reference answers, each of a drawn type."""

    name, sections, role = "questions", ("questions", "questioner"), "questioner"
    adds = ("type", "question", "reference")

    def split(self, unit: Unit) -> list[Unit]:
        """Return one unit per drawn question type."""
        rng = np.random.default_rng(seed_of(self.seed, "types", unit.id))
        settings, names = self.config.questions, list(templates.TYPES)
        shares = np.array(settings.types, float)
        drawn = rng.choice(names, settings.per_segment, False, shares / shares.sum())
        return [
            dataclasses.replace(unit, id=f"{unit.id}.{i}", type=str(name))
            for i, name in enumerate(drawn)
        ]

    def requests(self, unit: Unit) -> list[Request]:
        """Ask for a question of the unit's type."""
        settings = self.config.questioner
        focus = templates.focus(settings.focus, unit.type)
        prompt = templates.fill(settings.prompt, caption=unit.caption, focus=focus)
        return [self._request(unit, "question", prompt, self._subject(unit))]

    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return the question."""
        if (parsed := templates.parse_question(replies[0])) is None:
            raise Dropped("the question writer declined")
        return [dataclasses.replace(unit, question=parsed[0], reference=parsed[1])]


class Answers(Stage):
    """Answer every question twice, on better and on worse frames."""

    name, sections, role = "answers", ("answers", "answerer"), "answerer"
    adds = ("chosen", "rejected", "manipulation")

    def __init__(self, config: Config, videos: Sequence[Unit]):
        super().__init__(config)
        self.videos, self._probe = videos, Videos(config)

    def requests(self, unit: Unit) -> list[Request]:
        """Ask the same question on both views."""
        found = []
        for side, view in zip(("chosen", "rejected"), self._views(unit), strict=True):
            clip = self._clip(unit, view, side, self._other(unit) if view == "other" else "")
            found.append(self._request(unit, side, unit.question, clip))
        return found

    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return the pair of answers."""
        chosen, rejected = (
            templates.clean(reply, f"the {side} answer")
            for side, reply in zip(("chosen", "rejected"), replies, strict=True)
        )
        if chosen.casefold() == rejected.casefold():
            raise Dropped("both answers are the same")
        views = " / ".join(self._views(unit))
        return [dataclasses.replace(unit, chosen=chosen, rejected=rejected, manipulation=views)]

    def _views(self, unit: Unit) -> tuple[str, str]:
        """Return the views of the chosen and the rejected answer."""
        settings = self.config.answers
        if unit.kind == "localized":
            chosen, names = settings.localized_chosen, settings.localized_rejected
        else:
            chosen, names = settings.comprehensive_chosen, settings.comprehensive_rejected
        return chosen, names[seed_of(self.seed, "rejected", unit.id) % len(names)]

    def _other(self, unit: Unit) -> str:
        """Return another video: the first readable one in an order drawn for the unit."""
        others = [v for v in self.videos if v.video != unit.video and not v.twin]
        for other in sorted(others, key=lambda v: seed_of(self.seed, "other", unit.id, v.id)):
            try:
                self._probe.finish(other, ())
            except (ValueError, Dropped):
                continue
            return other.video
        raise ValueError("there is no other video to take frames from")


class Judged(Stage):
    """Keep the pairs whose chosen answer is better, uncontradicted and correct."""

    name, sections, role = "judged", ("judge",), "judge"
    adds = ("verdict",)

    def requests(self, unit: Unit) -> list[Request]:
        """Ask for a verdict, or for the judge's own answer; nothing if the judge is disabled."""
        settings = self.config.judge
        if not settings.enabled:
            return []
        prompt = unit.question
        if settings.asks == "verdict":
            names = ("caption", "question", "reference", "chosen", "rejected")
            prompt = templates.fill(settings.prompt, **{n: getattr(unit, n) for n in names})
        return [self._request(unit, "verdict", prompt, self._subject(unit))]

    def finish(self, unit: Unit, replies: Sequence[str]) -> list[Unit]:
        """Return the pair if the verdict keeps it."""
        if not replies:
            return [dataclasses.replace(unit, verdict="unjudged")]
        if self.config.judge.asks == "question":
            words = templates.agreement(replies[0], unit.chosen, unit.rejected)
        else:
            words = templates.parse_verdict(replies[0])
        if words != templates.KEPT:
            raise Dropped(f"verdict {'/'.join(words)}")
        return [dataclasses.replace(unit, verdict="/".join(words))]


def make_stages(config: Config, videos: Sequence[Unit]) -> list[Stage]:
    """Return the stages in their order.

    Args:
        config: Checked by `config.check`.
        videos: From `list_videos`; view `other` takes frames from them.
    """
    return [
        Videos(config),
        Segments(config),
        Captions(config),
        Questions(config),
        Answers(config, videos),
        Judged(config),
    ]
