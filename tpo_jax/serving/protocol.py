"""OpenAI's chat completions: parse the JSON of requests, build the JSON of answers."""

import dataclasses
import json
import time
import uuid
from typing import Any, TypeVar

from tpo_jax import families
from tpo_jax.generation.sampling import Sampling
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.settings import Settings

Number = TypeVar("Number", int, float)
PARTS = {"image_url": "image", "video_url": "video"}
# Unsupported fields that would change the answer: refused unless they have one of these values.
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
    """An image or a video of a message.

    Attributes:
        kind: "image" or "video".
        url: Where its bytes are.
        param: Its place in the request, for errors.
    """

    kind: str
    url: str
    param: str


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question and how to answer it."""

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
    """Return the JSON object of a body; raise `ApiError` if it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    return value


def number(body: dict, name: str, default: Number, low: float, high: float) -> Number:
    """Return a number of the default's type within bounds, or the default if absent or null."""
    value = body.get(name)
    if value is None:
        return default
    whole = isinstance(default, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise _wrong(name, f"must be {'an integer' if whole else 'a number'}")
    if not low <= value <= high:
        raise _wrong(name, f"must be from {low} to {high}, not {value}")
    return type(default)(value)


def text(body: dict, name: str) -> str:
    """Return a field that must be a string and not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise _wrong(name, "must be a string")
    return value


def flag(body: dict, name: str) -> bool:
    """Return a boolean field, False if absent."""
    value = body.get(name)
    if value not in (None, True, False):
        raise _wrong(name, "must be true or false")
    return bool(value)


def parse_chat(body: dict, settings: Settings) -> ChatRequest:
    """Return what the body of a chat completion asks for.

    Besides OpenAI's fields, accepts `num_frames`, `top_k` and `repetition_penalty`.

    Raises:
        ApiError: A field is wrong or not supported.
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
    """Return text and parts of the one user message that the model's template can hold."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _wrong("messages", "must be a list of objects")
    if messages and messages[0].get("role") == "system":
        templates = [t for f in families.FAMILIES.values() for t in f.templates.values()]
        known = sorted({template.system for template in templates})
        if messages[0].get("content") not in known:
            raise _wrong(
                "messages",
                "must not have a system message other than the template's: "
                + " or ".join(map(repr, known)),
            )
        messages = messages[1:]
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise _wrong(
            "messages", "must have exactly one user message: only single-turn chats are supported"
        )
    content = messages[0].get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise _wrong("messages", "must have content: a string or a list of parts")
    texts, parts = [], []
    for i, part in enumerate(content):
        where = f"messages[0].content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise _wrong(where, "must have a text string")
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
        raise _wrong("messages", "must have either one video or images")
    question = "\n".join(texts).strip()
    if not question:
        raise _wrong("messages", "must have text")
    return question, tuple(parts)


@dataclasses.dataclass(frozen=True)
class Reply:
    """Builds the JSON of one completion, whole or in chunks."""

    model: str
    prompt_tokens: int
    max_tokens: int
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def _object(self, kind: str, choices: list[dict], **more: Any) -> dict:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def usage(self, tokens: int) -> dict:
        """Return the token counts."""
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens}
        return counts | {"total_tokens": self.prompt_tokens + tokens}

    def reason(self, tokens: int) -> str:
        """Return why the answer ended."""
        return "length" if tokens >= self.max_tokens else "stop"

    def whole(self, content: str, tokens: int) -> dict:
        """Return the whole completion."""
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": self.reason(tokens)}
        return self._object("chat.completion", [choice], usage=self.usage(tokens))

    def chunk(self, delta: dict, tokens: int | None = None) -> dict:
        """Return a chunk; only the last one is given the number of tokens."""
        reason = None if tokens is None else self.reason(tokens)
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice])

    def usage_chunk(self, tokens: int) -> dict:
        """Return the final chunk that `stream_options.include_usage` asks for."""
        return self._object("chat.completion.chunk", [], usage=self.usage(tokens))
