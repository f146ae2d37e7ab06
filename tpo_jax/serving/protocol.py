"""OpenAI's chat completions: a request's JSON to what is asked, answers to JSON."""

import dataclasses
import json
import time
import uuid
from typing import Any

from tpo_jax.data.prompts import SYSTEM
from tpo_jax.generation.sampling import Sampling
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.settings import Settings

PARTS = {"image_url": "image", "video_url": "video"}
# What would change the answer and is not done: refused, unless it asks for nothing.
NEUTRAL: dict[str, tuple | list] = {
    "n": (1,),
    "stop": ("", []),
    "logprobs": (False,),
    "tools": ([],),
    "functions": ([],),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """An image or a video of a message."""

    kind: str
    url: str
    param: str  # where it stands, for errors


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question, and how to answer it."""

    model: str
    question: str
    parts: tuple[Part, ...]
    num_frames: int
    sampling: Sampling
    seed: int
    max_tokens: int
    stream: bool
    include_usage: bool


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param} {message}", "invalid_value", param)


def parse_json(data: bytes) -> dict:
    """The JSON object of a body; `ApiError` for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    return value


def number(body: dict, name: str, default, low: float, high: float):
    """A field of the default's type between two bounds, or the default where absent or null."""
    value = body.get(name)
    if value is None:
        return default
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise _wrong(name, f"must be {'an integer' if whole else 'a number'}")
    if not low <= value <= high:
        raise _wrong(name, f"must be from {low} to {high}, not {value}")
    return value if whole else float(value)


def text(body: dict, name: str) -> str:
    """A field that must be a text, and one that is."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise _wrong(name, "must be a text")
    return value


def flag(body: dict, name: str) -> bool:
    """A field that is true or false, false where absent."""
    value = body.get(name)
    if value not in (None, True, False):
        raise _wrong(name, "must be true or false")
    return bool(value)


def parse_chat(body: dict, settings: Settings) -> ChatRequest:
    """What a body of `/v1/chat/completions` asks for.

    Beside OpenAI's fields, `num_frames`, `top_k` and `repetition_penalty` are taken.

    Raises:
        ApiError: a field that is wrong, or that asks for what is not done here.
    """
    for name, neutral in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise _wrong(name, "is not supported")
    question, parts = _parse_messages(body.get("messages"))
    longest = settings.max_new_tokens
    asked = number(body, "max_tokens", longest, 1, 1 << 31)
    asked = number(body, "max_completion_tokens", asked, 1, 1 << 31)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    sampling = Sampling(
        temperature=number(body, "temperature", 0.0, 0, 100),
        top_k=number(body, "top_k", 0, 0, 1 << 30),
        top_p=number(body, "top_p", 1.0, 1e-6, 1),
        repetition_penalty=number(body, "repetition_penalty", 1.0, 1e-3, 1e3),
    )
    drawn = uuid.uuid4().int % (1 << 32) if sampling.temperature else 0
    return ChatRequest(
        model=text(body, "model"),
        question=question,
        parts=parts,
        num_frames=number(body, "num_frames", settings.num_frames, 1, settings.max_frames),
        sampling=sampling,
        seed=number(body, "seed", drawn, 0, 1 << 63),
        max_tokens=min(asked, longest),
        stream=flag(body, "stream"),
        include_usage=flag(options, "include_usage"),
    )


def _parse_messages(messages: Any) -> tuple[str, tuple[Part, ...]]:
    """Text and parts of the one message the model's template has room for."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _wrong("messages", "must be a list of objects")
    if messages and messages[0].get("role") == "system":
        if messages[0].get("content") != SYSTEM:
            raise _wrong("messages", f"may have no system message but the template's: {SYSTEM!r}")
        messages = messages[1:]
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise _wrong("messages", "must hold one message, the user's: the models answer one turn")
    content = messages[0].get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise _wrong("messages", "must have a content, a text or a list of parts")
    texts, parts = [], []
    for i, part in enumerate(content):
        where = f"messages[0].content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise _wrong(where, "must have a text")
            texts.append(part["text"])
        elif kind in PARTS:
            link = part.get(kind)
            url = link.get("url") if isinstance(link, dict) else None
            if not isinstance(url, str) or not url:
                raise _wrong(where, f"must have {kind}.url")
            parts.append(Part(PARTS[kind], url, where))
        else:
            raise _wrong(where, f"must be of type text, {' or '.join(PARTS)}")
    kinds = [part.kind for part in parts]
    if "video" in kinds and len(kinds) > 1:
        raise _wrong("messages", "must hold one video or images, not more")
    question = "\n".join(texts).strip()
    if not question:
        raise _wrong("messages", "must hold a text")
    return question, tuple(parts)


@dataclasses.dataclass(frozen=True)
class Reply:
    """The JSON of one completion, whole or in chunks."""

    model: str
    prompt_tokens: int
    max_tokens: int
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def _object(self, kind: str, choices: list[dict], **more) -> dict:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def usage(self, tokens: int) -> dict:
        """Tokens read and written."""
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens}
        return counts | {"total_tokens": self.prompt_tokens + tokens}

    def reason(self, tokens: int) -> str:
        """Why the answer ended."""
        return "length" if tokens >= self.max_tokens else "stop"

    def whole(self, content: str, tokens: int) -> dict:
        """The answer at once."""
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": self.reason(tokens)}
        return self._object("chat.completion", [choice], usage=self.usage(tokens))

    def chunk(self, delta: dict, tokens: int | None = None) -> dict:
        """A piece of it; the last one knows the number of tokens."""
        reason = None if tokens is None else self.reason(tokens)
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice])

    def usage_chunk(self, tokens: int) -> dict:
        """What `stream_options.include_usage` asks for, behind the last piece."""
        return self._object("chat.completion.chunk", [], usage=self.usage(tokens))
