"""Read lists of preference pairs: validated pairs, and what is not one with the reason."""

import logging
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tpo_jax.data.formats import read_records
from tpo_jax.data.prompts import check_placeholders, check_text, is_unicode, strip_placeholder
from tpo_jax.data.records import KINDS, PairTexts, Provenance, Span
from tpo_jax.errors import InputError

REQUIRED = ("video", "prompt", "chosen", "rejected")
OPTIONAL = ("question", "id", "video_id", "kind", "segment", "provenance", "rejected_video")
STILLS = ("image", "images")


@dataclass(frozen=True)
class Pair(PairTexts):
    """One line of a list. `video` is a path inside the video folder, times are in seconds.

    A pair on images, or on text alone, has no video. One of kind `video` has `rejected_video`, the
    one on which its only answer is worse, and `rejected` equals `chosen`.
    """

    where: str  # file and line or record, for messages
    video: str
    segment: Span | None = None
    provenance: Provenance = Provenance()
    images: tuple[str, ...] = ()  # paths inside the video folder
    rejected_video: str = ""  # a path inside the video folder, too

    @property
    def videos(self) -> tuple[str, ...]:
        """The videos that the pair needs: one, two, or none."""
        return tuple(video for video in (self.video, self.rejected_video) if video)


@dataclass(frozen=True)
class Rejection:
    """A line that is not a valid pair, and why."""

    where: str
    reason: str
    record: Any


def _as_json(value: Any) -> Any:
    """Return a value of YAML, CSV or a table as JSON can hold it: keys become texts, a set a list,
    and what JSON lacks its text.
    """
    if isinstance(value, dict):
        return {str(k): _as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(v) for v in value]
    if isinstance(value, set):
        return sorted(map(str, value))
    return value if isinstance(value, str | int | float | None) else str(value)


def read_pairs(
    path: str | Path, stills: bool = False, columns: Mapping[str, str] | None = None
) -> tuple[list[Pair], list[Rejection]]:
    """Read the pairs of a list in any form that `data/formats.py` knows, and the rejections.

    A record has `video`, `prompt` (or `question`), `chosen` and `rejected`, and may have `id` (else
    its number), `video_id` (else `video`), `kind`, `segment` as [start, end] in seconds, and
    `provenance` with `model`, `manipulation` and `verdict`; in CSV the last two are JSON. A single
    `<image>` or `<video>` in the prompt is taken out, as the originals do before they prepend it.
    A pair with `rejected_video`, another path, is of kind `video`: one answer, better on `video`;
    `rejected` is `chosen` or left out. With `stills` it may have, in place of `video`, `image` or
    `images`, a path or a list of paths (in CSV a path), or nothing at all; its prompt then keeps an
    `<image>` for every image, or none.

    Args:
        path: A file, or a folder of Hugging Face `datasets`.
        stills: Whether pairs without a video are valid.
        columns: Role to name, for fields with other names.

    Raises:
        InputError: The file is missing, empty, of another kind, or cannot be parsed.
    """
    path = Path(path)
    pairs: list[Pair] = []
    rejections: list[Rejection] = []
    ids: dict[str, str] = {}
    videos: dict[str, str] = {}
    unknown: set[str] = set()
    for number, where, record in read_records(path, columns or {}, stills):
        try:
            if isinstance(record, Exception):
                raise record
            pair = _pair(record, number, where, stills)
            if pair.id in ids:
                raise ValueError(f"id {pair.id!r} is already that of {ids[pair.id]}")
            if pair.video and videos.get(pair.video_id, pair.video) != pair.video:
                other = videos[pair.video_id]
                raise ValueError(f"video_id {pair.video_id!r} is already that of video {other!r}")
        except ValueError as error:
            raw = None if isinstance(record, Exception) else _as_json(record)
            rejections.append(Rejection(where, str(error), raw))
            continue
        ids[pair.id] = where
        videos[pair.video_id] = pair.video
        unknown |= set(record) - {*REQUIRED, *OPTIONAL, *STILLS}
        pairs.append(pair)
    if not pairs and not rejections:
        raise InputError(f"{path}: holds no pair")
    if unknown:
        logging.warning("%s: fields ignored: %s", path, ", ".join(sorted(map(str, unknown))))
    return pairs, rejections


def pair_of(record: Mapping[str, Any], number: int) -> Pair:
    """Return the pair of one record, on a video, on images or on text alone.

    Args:
        record: the fields `read_pairs` reads.
        number: names the record in messages, and is its id where it has none.

    Raises:
        InputError: the record is not a valid pair.
    """
    where = f"pair {number}"
    try:
        return _pair(dict(record), number, where, stills=True)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _pair(record: Any, number: int, where: str, stills: bool) -> Pair:
    if not isinstance(record, dict):
        raise ValueError(f"must be an object with {', '.join(REQUIRED)}, not {_type(record)}")
    if "question" in record:
        if "prompt" in record:
            raise ValueError("has both prompt and question, which name the same field")
        record = {**record, "prompt": record["question"]}
    second = "" if record.get("rejected_video") is None else _text(record, "rejected_video")
    if second:
        record = {"kind": "video", "rejected": record.get("chosen"), **record}
    images = _images(record)
    if images and not stills:
        raise ValueError("has images; only pairs on videos can be prepared and trained on")
    needed = REQUIRED[1:] if stills else REQUIRED
    if missing := [name for name in needed if record.get(name) is None]:
        raise ValueError(f"has no {', '.join(missing)}")
    chosen, rejected = (_text(record, name) for name in ("chosen", "rejected"))
    video = "" if record.get("video") is None else _text(record, "video")
    if video and images:
        raise ValueError("has both a video and images")
    stored = (("video", video), ("rejected_video", second), *(("image", i) for i in images))
    for name, path in stored:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{name} {path!r} must be a path inside the video folder")
    if second and second == video:
        raise ValueError("rejected_video is the video itself")
    if second and chosen.strip() != rejected.strip():
        raise ValueError("has rejected_video and two answers; a pair of two videos has one answer")
    if not second and chosen.strip() == rejected.strip():
        raise ValueError("chosen equals rejected")
    try:
        prompt = _text(record, "prompt")
        question = check_text(strip_placeholder(prompt)) if video else prompt.strip()
        if not video:
            check_placeholders(question, len(images))
    except InputError as error:
        raise ValueError(f"prompt: {error}") from error
    if not question:
        raise ValueError("prompt is empty")
    for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if odd := [c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\r\t"]:
            raise ValueError(f"{name} holds the control character {odd[0]!r}")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        try:
            check_text(answer)
        except InputError as error:
            raise ValueError(f"{name}: {error}") from error
    kind = record.get("kind", "other")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if (kind == "video") != bool(second):
        raise ValueError("kind 'video' and rejected_video go together: one answer, two videos")
    return Pair(
        where=where,
        id=_identifier(record, "id", str(number)),
        video=video,
        video_id=_identifier(record, "video_id", video) if video else "",
        kind=kind,
        question=question,
        chosen=chosen,
        rejected=rejected,
        segment=_segment(record.get("segment")),
        provenance=_provenance(record.get("provenance")),
        images=images,
        rejected_video=second,
    )


def _images(record: dict) -> tuple[str, ...]:
    given = [record[name] for name in STILLS if record.get(name) is not None]
    if len(given) > 1:
        raise ValueError("has both image and images, which name the same field")
    paths = given[0] if given and isinstance(given[0], list) else given
    if given and not paths:
        raise ValueError("images is empty")
    return tuple(_text({"image": path}, "image") for path in paths)


def _type(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _text(record: dict, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {_type(value)} {value!r}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    if not is_unicode(value):
        raise ValueError(f"{name} is not valid Unicode text")
    return value


def _identifier(record: dict, name: str, default: str) -> str:
    value = record.get(name, default)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _text({name: value}, name)


def _segment(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 2 or not 0 <= value[0] < value[1] < math.inf:
        raise ValueError(f"segment must be [start, end] in seconds, not {value!r}")
    return float(value[0]), float(value[1])


def _provenance(value: Any) -> Provenance:
    names = [f.name for f in fields(Provenance)]
    if value is None:
        return Provenance()
    if not isinstance(value, dict) or set(value) - set(names):
        raise ValueError(f"provenance must be an object with {', '.join(names)}, not {value!r}")
    return Provenance(**{name: _text(value, name) for name in value})
