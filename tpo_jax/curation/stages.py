"""The stages from a file name to a judged pair: what is asked about a unit, what becomes of it.

A *unit* is a dict with an `id` and all that earlier stages found out about it; a stage turns it
into items, which are the units of the next stage, or drops it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tpo_jax.curation import templates
from tpo_jax.curation.speakers import ROLES, Clip, Request, seed_of
from tpo_jax.curation.views import RANDOM, View, parse
from tpo_jax.errors import InputError
from tpo_jax.video import decode as video
from tpo_jax.video import sampling

Unit = dict[str, Any]


JUDGES = ("verdict", "question")  # what a judge may be asked for


class Dropped(Exception):
    """A unit that ends here in the ordinary course of things, and why."""


def _same(unit: Unit) -> list[Unit]:
    return [unit]


def _nothing(unit: Unit) -> list[Request]:
    return []


class Stage(NamedTuple):
    """One stage.

    `finish(unit, replies)` gives the items; it raises `Dropped`, or `ValueError` where the unit is
    to be set aside. `sections` are those of the config that its results depend on, beyond the
    stages before. `split` makes several units of an item of the stage before.
    """

    name: str
    sections: tuple[str, ...]
    finish: Callable[[Unit, Sequence[str]], list[Unit]]
    ask: Callable[[Unit], list[Request]] = _nothing
    role: str = ""
    split: Callable[[Unit], list[Unit]] = _same


def listing(folder: Path, limit: int) -> list[Unit]:
    """All files and folders of images under `folder`, by path: the units that everything begins
    with. The id is the path without its suffix; what comes second by an id is set aside later.

    Raises:
        InputError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"videos.folder={folder}: no such folder")
    images = {p.parent for p in folder.rglob("*") if p.suffix.lower() in sampling.IMAGE_SUFFIXES}
    found = images - {folder}
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and path.parent not in found and not hidden:
            found.add(path)
    units: dict[str, Unit] = {}
    for path in sorted(found):
        name = path.relative_to(folder)
        suffix = "" if path.is_dir() else name.suffix
        key = name.as_posix().removesuffix(suffix)
        if (first := units.get(key)) is None:
            units[key] = {"id": key, "video": name.as_posix()}
        else:
            key = name.as_posix()
            units[key] = {"id": key, "video": key, "twin": first["video"]}
    if not units:
        raise InputError(f"videos.folder={folder}: holds no file")
    return list(units.values())[: limit or None]


def check(config: ConfigDict) -> None:
    """Raises `InputError` for a value that no stage could work with."""
    if not config.videos.folder:
        raise InputError("videos.folder is empty: name the folder that the videos lie in")
    shares = config.questions.types
    if len(shares) != len(templates.TYPES) or min(shares) < 0 or not sum(shares):
        raise InputError(f"questions.types must be {len(templates.TYPES)} shares, not {shares}")
    if not 1 <= config.questions.per_segment <= sum(share > 0 for share in shares):
        raise InputError("questions.per_segment must lie between 1 and the types with a share")
    for name, value in config.answers.items():
        for view in (value,) if isinstance(value, str) else value:
            try:
                bare, _ = parse(view)
            except ValueError as error:
                raise InputError(f"answers.{name}: {error}") from error
            if name.startswith("comprehensive") and bare in ("segment", "rest", "irrelevant"):
                raise InputError(f"answers.{name}: view {view!r} is for localized pairs")
    if not (config.answers.localized_rejected and config.answers.comprehensive_rejected):
        raise InputError("answers.*_rejected must name at least one view")
    spans = config.segments
    if not 0 < spans.min_seconds <= spans.max_seconds or not 0 < spans.max_share < 1:
        raise InputError(
            "segments need 0 < min_seconds <= max_seconds and a max_share between 0 and 1"
        )
    if not 0 <= config.balance.localized <= 1:
        raise InputError(f"balance.localized={config.balance.localized} must lie in [0, 1]")
    if config.judge.asks not in JUDGES:
        raise InputError(f"judge.asks={config.judge.asks!r} must be one of {', '.join(JUDGES)}")
    if config.judge.asks == "question" and config.judge.backend == "rules":
        raise InputError("judge.asks='question' needs a model, rules reply with a verdict")
    for name in ROLES:
        role = config[name]
        if role.num_frames < (0 if name in ("questioner", "judge") else 1):
            raise InputError(f"{name}.num_frames={role.num_frames}: it has to see a frame at least")
        for field in ("prompt", "focus"):
            if field in role:
                templates.load(role[field])


def make_stages(config: ConfigDict, videos: Sequence[Unit]) -> list[Stage]:
    """The stages in their order, as `config` says.

    Args:
        config: `configs/curation.py`.
        videos: of `listing`; `other` views are taken from them.
    """
    folder, seed = Path(config.videos.folder), config.segments.seed

    def probe(unit: Unit, _) -> list[Unit]:
        if twin := unit.get("twin"):
            raise ValueError(f"its id is already that of {twin}")
        path = folder / unit["video"]
        try:
            if path.is_dir():
                frames, _, duration = sampling.read_frames(path, "uniform", 1)
                size = len(
                    [p for p in path.iterdir() if p.suffix.lower() in sampling.IMAGE_SUFFIXES]
                )
                height, width = frames.shape[1:3]
                info = video.VideoInfo(size, sampling.DIRECTORY_FPS, width, height, duration)
            else:
                info = video.probe(path)
        except (video.VideoError, OSError) as error:
            raise ValueError(str(getattr(error, "reason", None) or error)) from error
        if info.num_frames < 2:
            raise ValueError("has one frame only, nothing can be left out of it")
        if info.duration < config.videos.min_seconds:
            raise Dropped(f"shorter than {config.videos.min_seconds} s")
        return [{"id": unit["id"], **info._asdict()}]

    def cut(unit: Unit, _) -> list[Unit]:
        rng = np.random.default_rng(seed_of(seed, "segments", unit["id"]))
        spans, duration = config.segments, unit["duration"]
        # Two frames at least, so that neither the span nor the rest is empty.
        shortest = max(spans.min_seconds, 2 / unit["fps"])
        longest = min(spans.max_seconds, spans.max_share * duration)
        items: list[Unit] = []
        for _ in range(spans.localized if shortest <= longest else 0):
            length = rng.uniform(shortest, longest)
            start = rng.uniform(0, duration - length)
            span = [round(start, 3), round(start + length, 3)]
            items.append({"kind": "localized", "segment": span})
        items += [{"kind": "comprehensive", "segment": None}] * spans.comprehensive
        if not items:
            raise Dropped(f"no span of {shortest:g} s fits into {spans.max_share:g} of the video")
        return [{"id": f"{unit['id']}#{i}", **item} for i, item in enumerate(items)]

    def clip(unit: Unit, name: str, num_frames: int, part: str, path: str = "") -> Clip:
        bare = parse(name)[0]
        span = tuple(unit["segment"]) if unit["segment"] and bare in SPANS else None
        # Of the segment, not of the question: questions that see the same share its encoding.
        draw = seed_of(seed, part, unit["video"], str(span)) if bare in RANDOM else 0
        return Clip(folder / (path or unit["video"]), View(name, num_frames, span, draw))

    def request(unit: Unit, role: str, part: str, prompt: str, seen: Clip | None, **facts):
        name = f"{unit['id']}/{part}"
        return Request(name, prompt, seen, seed_of(seed, role, name), {**unit, **facts})

    def shown(unit: Unit, role: str) -> Clip | None:
        """What a role is shown of the part of the video that the unit is about."""
        count = config[role].num_frames
        return clip(unit, "segment" if unit["segment"] else "full", count, role) if count else None

    def describe(unit: Unit) -> list[Request]:
        start, end = unit["segment"] or (0.0, unit["duration"])
        name = config.captioner.prompt
        prompt = templates.fill(name, start=f"{start:.1f}", end=f"{end:.1f}")
        return [request(unit, "captioner", "caption", prompt, shown(unit, "captioner"))]

    def caption(unit: Unit, replies: Sequence[str]) -> list[Unit]:
        return [{"id": unit["id"], "caption": templates.clean(replies[0], "the caption")}]

    def by_type(unit: Unit) -> list[Unit]:
        rng = np.random.default_rng(seed_of(seed, "types", unit["id"]))
        shares = np.array(config.questions.types, float)
        drawn = rng.choice(
            list(templates.TYPES), config.questions.per_segment, False, shares / shares.sum()
        )
        return [unit | {"id": f"{unit['id']}.{i}", "type": str(t)} for i, t in enumerate(drawn)]

    def enquire(unit: Unit) -> list[Request]:
        focus = templates.focus(config.questioner.focus, unit["type"])
        prompt = templates.fill(config.questioner.prompt, caption=unit["caption"], focus=focus)
        return [request(unit, "questioner", "question", prompt, shown(unit, "questioner"))]

    def question(unit: Unit, replies: Sequence[str]) -> list[Unit]:
        if (parsed := templates.parse_question(replies[0])) is None:
            raise Dropped("the question writer declined")
        text, reference = parsed
        return [{"id": unit["id"], "type": unit["type"], "question": text, "reference": reference}]

    def views(unit: Unit) -> tuple[str, str]:
        kind = unit["kind"]
        names = config.answers[f"{kind}_rejected"]
        rejected = names[seed_of(seed, "rejected", unit["id"]) % len(names)]
        return config.answers[f"{kind}_chosen"], rejected

    def donor(unit: Unit) -> str:
        """Another video, the first that can be read in an order of the unit's own."""
        others = [v for v in videos if v["video"] != unit["video"] and "twin" not in v]
        ranked = sorted(others, key=lambda v: seed_of(seed, "other", unit["id"], v["id"]))
        for other in ranked:
            try:
                probe(other, ())
            except (ValueError, Dropped):
                continue
            return other["video"]
        raise ValueError("there is no other video to take frames from")

    def challenge(unit: Unit) -> list[Request]:
        count = config.answerer.num_frames
        requests = []
        for side, name in zip(("chosen", "rejected"), views(unit), strict=True):
            path = donor(unit) if name == "other" else ""
            seen = clip(unit, name, count, side, path)
            requests.append(request(unit, "answerer", side, unit["question"], seen, side=side))
        return requests

    def answers(unit: Unit, replies: Sequence[str]) -> list[Unit]:
        chosen, rejected = (
            templates.clean(reply, f"the {side} answer")
            for side, reply in zip(("chosen", "rejected"), replies, strict=True)
        )
        if chosen.casefold() == rejected.casefold():
            raise Dropped("both answers are the same")
        manipulation = " / ".join(views(unit))
        item = {"chosen": chosen, "rejected": rejected, "manipulation": manipulation}
        return [{"id": unit["id"], **item}]

    def weigh(unit: Unit) -> list[Request]:
        if not config.judge.enabled:
            return []
        if config.judge.asks == "question":
            return [request(unit, "judge", "verdict", unit["question"], shown(unit, "judge"))]
        fields = ("caption", "question", "reference", "chosen", "rejected")
        prompt = templates.fill(config.judge.prompt, **{name: unit[name] for name in fields})
        return [request(unit, "judge", "verdict", prompt, shown(unit, "judge"))]

    def verdict(unit: Unit, replies: Sequence[str]) -> list[Unit]:
        if not replies:
            return [{"id": unit["id"], "verdict": "unjudged"}]
        if config.judge.asks == "question":
            words = templates.agreement(replies[0], unit["chosen"], unit["rejected"])
        else:
            words = templates.parse_verdict(replies[0])
        if words != templates.KEPT:
            raise Dropped(f"verdict {'/'.join(words)}")
        return [{"id": unit["id"], "verdict": "/".join(words)}]

    return [
        Stage("videos", ("videos",), probe),
        Stage("segments", ("segments",), cut),
        Stage("captions", ("captioner",), caption, describe, "captioner"),
        Stage("questions", ("questions", "questioner"), question, enquire, "questioner", by_type),
        Stage("answers", ("answers", "answerer"), answers, challenge, "answerer"),
        Stage("judged", ("judge",), verdict, weigh, "judge"),
    ]


SPANS = ("segment", "rest", "irrelevant")  # views that read the segment
