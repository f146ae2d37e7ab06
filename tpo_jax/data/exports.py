"""The pairs of shards as ms-swift and TRL read them: JSON Lines beside the shards.

Videos are named by their absolute paths, as ms-swift advises. `data/conversations.py` reads both
lists, which give the pairs again: what neither framework reads stands in further columns.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tpo_jax.data.folders import is_store
from tpo_jax.data.records import PairRecord
from tpo_jax.data.shards import open_shards
from tpo_jax.errors import InputError, note
from tpo_jax.families.template import PLACEHOLDERS, Message, conversation_of, visual_at
from tpo_jax.io.files import write_lines
from tpo_jax.io.paths import Place, in_bucket, place

_LACKING = {
    "swift": "ms-swift takes <video> and <image> in an answer for visuals",
    "trl": "TRL has no pairs of two videos",
}

_Paths = dict[tuple[str, str], str]  # path of a video by its digest and its name, or ""


def check_folder(videos: str | Place) -> None:
    """Raise `InputError` for a store, which has no video files to name."""
    if is_store(place(videos)):
        raise InputError(f"{videos}: a store, but the lists for ms-swift and TRL name video files")


def export(shards: Path, videos: str | Place, formats: Sequence[str]) -> None:
    """Write `pairs_<format>.jsonl` to a directory of shards for each format.

    Pairs that a format cannot hold are left out, and a note says how many.

    Args:
        shards: The directory.
        videos: The folder that the shards were prepared from.
        formats: Names in `FORMATS`.
    """
    opened = open_shards(shards)
    folder = videos if in_bucket(videos) else Path(videos).absolute()
    names = opened.videos.names()
    # Of several files with the same content, the one that the pair names; any of them if it names
    # none.
    paths = {(digest, called): f"{folder}/{n}" for n, digest in names.items() for called in ("", n)}
    for name in formats:
        lines = FORMATS[name](opened.index, paths)
        kept = [line for line in lines if line is not None]
        path = shards / f"pairs_{name}.jsonl"
        write_lines(path, kept)
        if missing := len(lines) - len(kept):
            note(f"{path}: {missing} pairs are left out: {_LACKING[name]}")


def _common(pair: PairRecord, paths: _Paths) -> dict[str, Any]:
    """Return what all formats have: the video, and columns that only this package reads."""
    digest = pair.video_digest
    provenance = {name: text or None for name, text in vars(pair.provenance).items()}
    return {
        "id": pair.id,
        "videos": [paths.get((digest, pair.video_id), paths[digest, ""])],
        "video_id": pair.video_id,
        "kind": pair.kind,
        "segment": pair.segment,
        "provenance": provenance,
    }


def _swift(pairs: Sequence[PairRecord], paths: _Paths) -> list[dict[str, Any] | None]:
    """Return records of ms-swift, which takes a placeholder for a visual wherever it stands.

    ms-swift drops records without a column that others have, and those whose `rejected_response`
    equals the answer. So if any pair has two videos, all have `rejected_messages` and
    `rejected_videos`.
    """
    two = any(pair.rejected_video_digest for pair in pairs)
    return [_swift_record(pair, paths, two) for pair in pairs]


def _swift_record(pair: PairRecord, paths: _Paths, two_videos: bool) -> dict[str, Any] | None:
    messages = _marked(pair)
    spoken = [m.content for m in messages if m.role != "user"] + [*pair.answers]
    if any(placeholder in text for text in spoken for placeholder in PLACEHOLDERS):
        return None
    asked = [message._asdict() for message in messages]
    chosen, rejected = ({"role": "assistant", "content": text} for text in pair.answers)
    record = {**_common(pair, paths), "messages": [*asked, chosen]}
    if not two_videos:
        return record | {"rejected_response": pair.rejected}
    digest, name = pair.rejected_video_digest, pair.rejected_video_id
    videos = [paths[digest, name]] if digest else record["videos"]
    return record | {"rejected_messages": [*asked, rejected], "rejected_videos": videos}


def _trl(pairs: Sequence[PairRecord], paths: _Paths) -> list[dict[str, Any] | None]:
    """Return records of TRL, whose messages are lists of parts; it has no pairs of two videos."""
    return [None if pair.rejected_video_digest else _trl_record(pair, paths) for pair in pairs]


def _trl_record(pair: PairRecord, paths: _Paths) -> dict[str, Any]:
    messages = _marked(pair)
    at = visual_at(messages)
    prompt = [_parts(m.role, m.content) for m in messages]
    text = messages[at].content.removeprefix("<video>").lstrip("\n")
    prompt[at] = _parts("user", text)
    prompt[at]["content"].insert(0, {"type": "video"})
    return {
        **_common(pair, paths),
        "prompt": prompt,
        "chosen": [_parts("assistant", pair.chosen)],
        "rejected": [_parts("assistant", pair.rejected)],
    }


def _parts(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _marked(pair: PairRecord) -> tuple[Message, ...]:
    """Return the messages before the answers, `<video>` in front of the one that shows it."""
    messages = list(conversation_of(pair.asked))
    at = visual_at(messages)
    if at == len(messages) - 1:
        messages[at] = Message("user", f"<video>{messages[at].content}")
    return tuple(messages)


FORMATS: dict[str, Callable[[Sequence[PairRecord], _Paths], list[dict[str, Any] | None]]] = {
    "swift": _swift,
    "trl": _trl,
}
