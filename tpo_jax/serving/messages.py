"""Messages of a chat: a conversation, and the images or the video in it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from tpo_jax.data.messages import LOGGED
from tpo_jax.families.template import IMAGE, PLACEHOLDERS, ROLES, Message
from tpo_jax.serving.fields import NAMED, check_keys, short, wrong

PARTS = {"image_url": "image", "video_url": "video"}
FRAMES = "data:video/jpeg;"  # of a URL that holds a video's frames
RENAMED = {"developer": "system"}  # OpenAI's new name
_CACHED = ("cache_control", "uuid")  # what a provider keeps of a prompt: no answer depends on it


@dataclasses.dataclass(frozen=True)
class MediaPart:
    """An image or a video of a message.

    Attributes:
        kind: "image" or "video".
        url: Where its bytes are.
        param: Its place in the request, for errors.
    """

    kind: str
    url: str
    param: str


class Shown(NamedTuple):
    """What a conversation is about.

    Attributes:
        kind: "video"; "frames": a video given as its frames; "images": any number of them.
        parts: One video, or the images.
    """

    kind: str
    parts: tuple[MediaPart, ...]


def parse_messages(messages: Any, video_of_images: int) -> tuple[tuple[Message, ...], Shown]:
    """Return the conversation, with placeholders for what it shows, and that.

    Args:
        messages: Of the request.
        video_of_images: So many images in one message, if it has all of them, are frames; 0: never.

    Raises:
        ApiError: A message is wrong, or the parts are neither one video nor images.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise wrong("messages", "must be a list of objects")
    read = [_parse_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if not read or read[-1][0].role != "user":
        raise wrong("messages", "must end with a user message")
    if any(message.role == "system" for message, _ in read[1:]):
        raise wrong("messages", "must have a system message only in the first place")
    parts = tuple(part for _, found in read for part in found)
    shown = Shown(_kind(parts, [len(found) for _, found in read], video_of_images), parts)
    conversation = [
        message._replace(content=_with_placeholders(message.content, len(found), shown.kind))
        for message, found in read
    ]
    return tuple(conversation), shown


def _kind(parts: Sequence[MediaPart], counts: Sequence[int], video_of_images: int) -> str:
    if any(part.kind == "video" for part in parts):
        if len(parts) > 1:
            raise wrong("messages", "must have either one video or images")
        return "frames" if parts[0].url[: len(FRAMES)].lower() == FRAMES else "video"
    together = bool(parts) and max(counts) == len(parts)
    return "frames" if together and 0 < video_of_images <= len(parts) else "images"


def _with_placeholders(text: str, parts: int, kind: str) -> str:
    """Return a message's text with the places of its parts: before it, unless it names them."""
    if not parts or any(placeholder in text for placeholder in PLACEHOLDERS):
        return text  # what does not fit is found when the prompt is written
    return " ".join([IMAGE] * (parts if kind == "images" else 1)) + "\n" + text


def _parse_message(message: dict, where: str) -> tuple[Message, list[MediaPart]]:
    # First, for a message that calls a tool has no content.
    held = {name for name, value in message.items() if value} - {"role", "content", *LOGGED}
    if held:
        names = ", ".join(map(short, sorted(held)[:NAMED]))
        raise wrong(where, f"has {names}, which no prompt template here can hold")
    role = message.get("role")
    role = RENAMED.get(role, role) if isinstance(role, str) else ""
    if role not in ROLES:
        raise wrong(where, f"must have a role: {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise wrong(where, "must have content: a string or a list of parts")
    read = [_parse_part(part, f"{where}.content[{i}]", role) for i, part in enumerate(content)]
    text = "\n".join(part for part in read if isinstance(part, str)).strip()
    if not text and role == "user":
        raise wrong(where, "must have text")
    return Message(role, text), [part for part in read if isinstance(part, MediaPart)]


def _parse_part(part: Any, where: str, role: str) -> str | MediaPart:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        check_keys(part, ("type", kind, *_CACHED), where)
        if not isinstance(part.get("text"), str):
            raise wrong(where, "must have a text string")
        return part["text"]
    if kind not in PARTS or role != "user":
        known = f"text, {' or '.join(PARTS)}" if role == "user" else "text"
        raise wrong(where, f"must be of type {known}")
    check_keys(part, ("type", kind, *_CACHED), where)
    link = part.get(kind)
    url = link.get("url") if isinstance(link, dict) else None
    if not isinstance(url, str) or not url:
        raise wrong(where, f"must have {kind}.url")
    check_keys(link, ("url", "detail"), f"{where}.{kind}")
    return MediaPart(PARTS[kind], url, where)
