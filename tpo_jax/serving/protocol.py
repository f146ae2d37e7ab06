"""OpenAI's chat completions: parse the JSON of requests, build the JSON of answers."""

import dataclasses
import time
import uuid
from typing import Any

from tpo_jax.families.template import Message
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Answer
from tpo_jax.serving.fields import check_keys, check_names, flag, number, text, wrong
from tpo_jax.serving.messages import Shown, parse_messages
from tpo_jax.serving.settings import ServerSettings

MOST_STOPS = 4


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question, with the messages before it, and how to answer it."""

    model: str
    conversation: tuple[Message, ...]
    shown: Shown
    num_frames: int
    sampling: Sampling
    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_chat(body: dict, settings: ServerSettings) -> ChatRequest:
    """Return what the body of a chat completion asks for.

    Besides OpenAI's fields, accepts `num_frames`, `top_k` and `repetition_penalty`.

    Raises:
        ApiError: A field is wrong or not supported.
    """
    check_names(body)
    conversation, shown = parse_messages(body.get("messages"), settings.video_of_images)
    longest = settings.max_new_tokens
    asked = number(body, "max_tokens", longest, 1, 1 << 31)
    asked = number(body, "max_completion_tokens", asked, 1, 1 << 31)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise wrong("stream_options", "must be an object")
    check_keys(options, ("include_usage", "include_obfuscation"), "stream_options")
    sampling = Sampling(
        temperature=number(body, "temperature", 0.0, 0, 100),
        top_k=max(0, number(body, "top_k", 0, -1, 1 << 30)),  # -1: all, as in other servers
        top_p=number(body, "top_p", 1.0, 1e-6, 1),
        repetition_penalty=number(body, "repetition_penalty", 1.0, 1e-3, 1e3),
    )
    drawn = uuid.uuid4().int % (1 << 32) if sampling.temperature else 0
    return ChatRequest(
        model=text(body, "model"),
        conversation=conversation,
        shown=shown,
        num_frames=number(body, "num_frames", settings.num_frames, 1, settings.max_frames),
        sampling=sampling,
        seed=number(body, "seed", drawn, 0, 1 << 63),
        max_tokens=min(asked, longest),
        stop=_parse_stop(body.get("stop")),
        stream=flag(body, "stream"),
        include_usage=flag(options, "include_usage"),
    )


def _parse_stop(value: Any) -> tuple[str, ...]:
    """Return the stop strings: one, a list of them, or none."""
    given = [value] if isinstance(value, str) and value else value or []
    if not isinstance(given, list) or len(given) > MOST_STOPS:
        raise wrong("stop", f"must be a string or a list of at most {MOST_STOPS}")
    if not all(isinstance(stop, str) and stop for stop in given):
        raise wrong("stop", "must have strings that are not empty")
    return tuple(given)


@dataclasses.dataclass(frozen=True)
class Reply:
    """Builds the JSON of one completion, whole or in chunks."""

    model: str
    prompt_tokens: int
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def _object(self, kind: str, choices: list[dict], **more: Any) -> dict:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def usage(self, tokens: int) -> dict:
        """Return the token counts."""
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens}
        return counts | {"total_tokens": self.prompt_tokens + tokens}

    def whole(self, answer: Answer) -> dict:
        """Return the whole completion."""
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answer)}
        return self._object("chat.completion", [choice], usage=self.usage(answer.tokens))

    def chunk(self, delta: dict, last: Answer | None = None) -> dict:
        """Return a chunk; the last one is given the finished answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": last and _reason(last)}
        return self._object("chat.completion.chunk", [choice])

    def usage_chunk(self, tokens: int) -> dict:
        """Return the final chunk that `stream_options.include_usage` asks for."""
        return self._object("chat.completion.chunk", [], usage=self.usage(tokens))


def _reason(answer: Answer) -> str:
    return "length" if answer.cut_off else "stop"
