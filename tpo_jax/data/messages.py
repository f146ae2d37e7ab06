"""Messages of published formats, in LLaVA's or OpenAI's form, as turns of a conversation.

| fields of a message | what becomes of them |
|---|---|
| `role` or `from`, `content` or `value` | read |
| `loss`, `loss_scale` (ms-swift), `weight` (OpenAI), `train`, `training` (Axolotl) | checked: the
loss is on the last answer alone, once |
| `LOGGED` | left out with a note, as ms-swift, TRL and Qwen2's chat template do |
| any other that says something, such as `tool_calls` or `reasoning_content` | refused |
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tpo_jax.errors import note
from tpo_jax.families.template import IMAGE, ROLES, Message

# Records of who wrote a message and when, which no prompt shows.
LOGGED = frozenset(
    ("id", "uuid", "message_id", "parent_id", "index", "turn", "name", "author", "model")
    + ("date", "timestamp", "created", "created_at", "updated_at", "language", "lang")
    + ("finish_reason", "stop_reason", "usage", "tokens", "score", "rating", "metadata")
)
_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
REPLIES = ("assistant", "gpt")  # the model's role
_SCALE = "loss_scale"  # has no effect on a message that has no loss
_LOSSES = ("loss", _SCALE, "weight", "train", "training")
_CACHED = "cache_control"  # of a part: asks a provider to cache it
_PARTS = {"image": IMAGE, "video": "<video>", "image_url": IMAGE, "video_url": "<video>"}

Visuals = tuple[tuple[str, Any], ...]  # of a message's parts: `image` or `video`, and its path


class Turn(NamedTuple):
    """One message of a list.

    Attributes:
        role: In `families.template.ROLES`.
        content: Its text, with a placeholder for each part that is a visual.
        visuals: What these parts name.
        losses: What the message says on its own loss, by field.
    """

    role: str
    content: str
    visuals: Visuals = ()
    losses: Mapping[str, Any] = {}

    @property
    def message(self) -> Message:
        """Role and text alone."""
        return Message(self.role, self.content)


def read_turns(messages: Any, name: str) -> list[Turn]:
    """Return the turns of a message or a list of them.

    Args:
        messages: Of a record.
        name: The field that holds them, for error messages.

    Raises:
        ValueError: They are malformed, or hold what cannot be rendered.
    """
    turns = [_turn(m, name) for m in (messages if isinstance(messages, list) else [messages])]
    if not turns:
        raise ValueError(f"{name} holds no message")
    return turns


def check_losses(turns: Sequence[Turn]) -> None:
    """Raise `ValueError` where messages ask for another loss than one on the last answer, once."""
    *earlier, answer = turns
    for name, value in answer.losses.items():
        if value != 1:
            raise ValueError(f"has an answer with {name}={value!r}; leave out the pair or this")
    for name, value in (x for t in earlier if t.role == "assistant" for x in t.losses.items()):
        if value != 0 and name != _SCALE:
            raise ValueError(
                f"has an earlier answer with {name}={value!r}; the loss is on the last answer "
                "alone, leave the field out"
            )


def _turn(message: Any, name: str) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"{name} must be a text or a list of messages")
    keys = [
        a if message.get(a) is not None else b for a, b in (("role", "from"), ("content", "value"))
    ]
    # Checked first, because a message that calls a tool has no content.
    _only(message, (*keys, *_LOSSES, *LOGGED), f"{name} has a message")
    who, content = (message.get(key) for key in keys)
    visuals: Visuals = ()
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content, visuals = _of_parts(content, name)
    if not isinstance(who, str) or not isinstance(content, str):
        raise ValueError(f"{name} must be a text or a list of messages")
    role = _ROLES.get(who, who)
    if role not in ROLES:
        raise ValueError(f"{name} has a message of {who!r}, which no template here can hold")
    if visuals and role != "user":
        raise ValueError(f"{name} has a visual in a message of {who!r}, not of the user")
    for key in message:
        if key in LOGGED and message[key]:
            note(f"{key!r} of messages is left out: no prompt template shows it")
    losses = {key: message[key] for key in _LOSSES if message.get(key) is not None}
    return Turn(role, content, visuals, losses)


def _only(fields: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raise `ValueError` for a field that says something and would be lost."""
    if lost := [name for name, value in fields.items() if value and name not in known]:
        raise ValueError(f"{what} with {lost[0]!r}, which no template here can hold")


def _of_parts(parts: Sequence[Mapping[str, Any]], name: str) -> tuple[str, Visuals]:
    """Return a message's parts as text, with a placeholder for each visual, and the visuals."""
    texts, visuals = [], []
    for part in parts:
        kind = part.get("type", "text")
        if kind == "text":
            texts.append(str(part.get("text") or ""))
        elif isinstance(kind, str) and kind in _PARTS:
            texts.append(_PARTS[kind])
            path = part.get(kind)
            if kind.endswith("_url") and isinstance(path, dict):
                _only(path, ("url",), f"{name} has {kind}")
                path = path.get("url")
            visuals.append((kind.removesuffix("_url"), path))
        else:
            raise ValueError(f"{name} has a part of type {kind!r}, which no template here can hold")
        _only(part, ("type", kind, _CACHED), f"{name} has a part of type {kind!r}")
    return "\n".join(text for text in texts if text), tuple(visuals)
