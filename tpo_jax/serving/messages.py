"""Messages of a chat: the texts, and the images or the video among them."""

import dataclasses
from typing import Any

from tpo_jax import families
from tpo_jax.serving.fields import wrong

PARTS = {"image_url": "image", "video_url": "video"}


@dataclasses.dataclass(frozen=True)
class Part:
    """An image or a video of a message.

    Attributes:
        kind: "image" or "video".
        url: Where its bytes are.
        param: Its place in the request, for errors.
    """

    kind: str
    url: str
    param: str


def parse_messages(messages: Any) -> tuple[str, tuple[Part, ...]]:
    """Return text and parts of the one user message that the model's template can hold."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise wrong("messages", "must be a list of objects")
    if messages and messages[0].get("role") == "system":
        templates = [t for f in families.FAMILIES.values() for t in f.templates.values()]
        known = sorted({template.system for template in templates})
        if messages[0].get("content") not in known:
            raise wrong(
                "messages",
                "must not have a system message other than the template's: "
                + " or ".join(map(repr, known)),
            )
        messages = messages[1:]
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise wrong(
            "messages", "must have exactly one user message: only single-turn chats are supported"
        )
    content = messages[0].get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise wrong("messages", "must have content: a string or a list of parts")
    texts, parts = [], []
    for i, part in enumerate(content):
        where = f"messages[0].content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise wrong(where, "must have a text string")
            texts.append(part["text"])
        elif kind in PARTS:
            link = part.get(kind)
            url = link.get("url") if isinstance(link, dict) else None
            if not isinstance(url, str) or not url:
                raise wrong(where, f"must have {kind}.url")
            parts.append(Part(PARTS[kind], url, where))
        else:
            raise wrong(where, f"must be of type text, {' or '.join(PARTS)}")
    kinds = [part.kind for part in parts]
    if "video" in kinds and len(kinds) > 1:
        raise wrong("messages", "must have either one video or images")
    question = "\n".join(texts).strip()
    if not question:
        raise wrong("messages", "must have text")
    return question, tuple(parts)
