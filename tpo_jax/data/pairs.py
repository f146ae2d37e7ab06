"""Read lists of preference pairs: the valid pairs, and rejected lines with the reason."""

import dataclasses
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tpo_jax.data.conversations import adapt, check_characters, place_visuals
from tpo_jax.data.folders import check_relative
from tpo_jax.data.formats import read_records
from tpo_jax.data.prompts import check_answer, is_unicode
from tpo_jax.data.records import KINDS, PairTexts, Provenance, Span
from tpo_jax.errors import InputError, note
from tpo_jax.families.template import Message
from tpo_jax.io.paths import Place, relative_to

REQUIRED = ("video", "prompt", "chosen", "rejected")
OPTIONAL = (
    *("question", "id", "video_id", "kind", "segment", "provenance", "rejected_video"),
    *("history", "system", "conversations", "messages", "rejected_response", "rejected_messages"),
)
STILLS = ("image", "images")
KNOWN = {*REQUIRED, *OPTIONAL, *STILLS}


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
    repeated_id: str = ""  # the id in the list, if an earlier pair has it, too

    def to_json(self) -> dict[str, Any]:
        """Return the pair as JSON can hold it, without fields that are rare and empty."""
        values = dataclasses.asdict(self) | {"history": [m._asdict() for m in self.history]}
        rare = ("history", "repeated_id")
        return {name: value for name, value in values.items() if value or name not in rare}

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
    path: str | Path,
    stills: bool = False,
    columns: Mapping[str, str] | None = None,
    videos: Place | None = None,
) -> tuple[list[Pair], list[Rejection]]:
    """Read the pairs of a list in any form that `data/formats.py` knows, and the rejections.

    A record has `video`, `prompt` (or `question`), `chosen` and `rejected`, and may have `id` (else
    its number), `video_id` (else `video`), `kind`, `segment` as [start, end] in seconds, and
    `provenance` with `model`, `manipulation` and `verdict`; in CSV the last two are JSON. A single
    `<image>` or `<video>` in the prompt is taken out, as the originals do before they prepend it;
    with earlier turns the video stands in the turn that has it, or in the first one.
    A pair with `rejected_video`, another path, is of kind `video`: one answer, better on `video`;
    `rejected` is `chosen` or left out. With `stills` it may have, in place of `video`, `image` or
    `images`, a path or a list of paths (in CSV a path), or nothing at all; its prompt then keeps an
    `<image>` for every image, or none.

    Args:
        path: A file, or a folder of Hugging Face `datasets`.
        stills: Whether pairs without a video are valid.
        columns: Role to name, for fields with other names.
        videos: Folder of videos and images; absolute paths below it are taken as relative ones.

    Raises:
        InputError: The file is missing, empty, of another kind, or cannot be parsed.
    """
    path = Path(path)
    pairs: list[Pair] = []
    rejections: list[Rejection] = []
    named: dict[str, str] = {}
    unknown: set[str] = set()
    for number, where, record in read_records(path, columns or {}, stills):
        try:
            if isinstance(record, Exception):
                raise record
            pair = _pair(_inside(record, videos), number, where, stills)
            if pair.video and named.get(pair.video_id, pair.video) != pair.video:
                other = named[pair.video_id]
                raise ValueError(f"video_id {pair.video_id!r} is already that of video {other!r}")
        except ValueError as error:
            raw = None if isinstance(record, Exception) else _as_json(record)
            rejections.append(Rejection(where, str(error), raw))
            continue
        named[pair.video_id] = pair.video
        unknown |= set(record) - KNOWN
        pairs.append(pair)
    if not pairs and not rejections:
        raise InputError(f"{path}: holds no pair")
    if unknown:
        _note_ignored(str(path), unknown)
    return _with_own_ids(pairs), rejections


def _with_own_ids(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with unique ids: `-2`, `-3`, … is added to one that an earlier pair has."""
    taken, seen = {pair.id for pair in pairs}, set[str]()
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(2))
    result = []
    for pair in pairs:
        if pair.id in seen:
            number = next(n for n in numbers[pair.id] if f"{pair.id}-{n}" not in taken)
            pair = dataclasses.replace(pair, id=f"{pair.id}-{number}", repeated_id=pair.id)
            taken.add(pair.id)
        seen.add(pair.id)
        result.append(pair)
    return result


def _inside(record: Any, folder: Place | None) -> Any:
    """Return a record whose absolute paths below the folder of videos are relative to it.

    Raises:
        ValueError: An absolute path names no video of a store.
    """
    if folder is None or not isinstance(record, dict):
        return record
    new = dict(record)
    for name in ("video", "rejected_video", *STILLS):
        value = new.get(name)
        if isinstance(value, str):
            new[name] = relative_to(folder, value)
            check_relative(folder, name, new[name])
        elif isinstance(value, list):
            new[name] = [relative_to(folder, v) if isinstance(v, str) else v for v in value]
    return new


def pair_of(record: Mapping[str, Any], number: int, videos: Place | None = None) -> Pair:
    """Return the pair of one record, on a video, on images or on text alone.

    Args:
        record: the fields `read_pairs` reads.
        number: names the record in messages, and is its id where it has none.
        videos: as `read_pairs` takes it.

    Raises:
        InputError: the record is not a valid pair.
    """
    where = f"pair {number}"
    try:
        adapted = _inside(adapt(record) if isinstance(record, Mapping) else record, videos)
        pair = _pair(adapted, number, where, stills=True)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if unknown := set(adapted) - KNOWN:
        _note_ignored("pairs", unknown)  # without the number: printed once
    return pair


def _note_ignored(where: str, unknown: set[Any]) -> None:
    note(f"{where}: fields ignored: {', '.join(sorted(map(str, unknown)))}")


def _pair(record: Any, number: int, where: str, stills: bool) -> Pair:
    if not isinstance(record, dict):
        raise ValueError(f"must be an object with {', '.join(REQUIRED)}, not {_type(record)}")
    record = {name: value for name, value in record.items() if value is not None}
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
    history, question = place_visuals(
        [*record.get("history", ()), Message("user", _text(record, "prompt"))],
        bool(video),
        len(images),
    )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        check_characters(name, answer)
        try:
            check_answer(answer)
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
        history=history,
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
    # An integer may be larger than any float64.
    most = sys.float_info.max
    if not numbers or len(value) != 2 or not 0 <= value[0] < value[1] <= most:
        said = repr(value) if len(repr(value)) < 100 else "what is there"
        raise ValueError(f"segment must be [start, end] in seconds, start before end, not {said}")
    return float(value[0]), float(value[1])


def _provenance(value: Any) -> Provenance:
    names = [f.name for f in fields(Provenance)]
    if value is None:
        return Provenance()
    if not isinstance(value, dict) or set(value) - set(names):
        raise ValueError(f"provenance must be an object with {', '.join(names)}, not {value!r}")
    given = [name for name in value if value[name] is not None]
    return Provenance(**{name: _text(value, name) for name in given})
