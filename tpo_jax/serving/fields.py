"""Fields of a request's JSON: typed values, and names that the server does not know."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import TypeVar

from tpo_jax.serving.errors import ApiError

Number = TypeVar("Number", int, float)
USED = (
    *("model", "messages", "stream", "stream_options", "num_frames", "seed", "stop"),
    *("max_tokens", "max_completion_tokens"),
    *("temperature", "top_k", "top_p", "repetition_penalty"),
)
# Names for the client's own records and for a provider's billing: no answer depends on them.
IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "request_id"),
    *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
)
# Unsupported fields that would change the answer: refused unless they have one of these values,
# with which other servers answer as without them.
NEUTRAL: dict[str, tuple | list] = {
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "stop_token_ids": ([],),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
# Of a client's names a message holds so many, each of so many characters.
NAMED, LONGEST = 10, 64
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def short(name: str) -> str:
    """Return a name that a client gave as a message holds it."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}…"


def wrong(param: str, message: str) -> ApiError:
    """Return the error of a field whose value is wrong."""
    return ApiError(400, f"{param} {message}", "invalid_value", param)


def parse_json(data: bytes) -> dict:
    """Return the JSON object of a body; raise `ApiError` if it is none, or holds a text that is no
    valid Unicode: half a surrogate pair, which cannot be written into an answer.
    """
    try:
        value = json.loads(data.decode())
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
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
        raise wrong(name, f"must be {'an integer' if whole else 'a number'}")
    if not low <= value <= high:
        raise wrong(name, f"must be from {low} to {high}, not {value}")
    return type(default)(value)


def text(body: dict, name: str) -> str:
    """Return a field that must be a string and not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise wrong(name, "must be a string")
    return value


def flag(body: dict, name: str) -> bool:
    """Return a boolean field, False if absent."""
    value = body.get(name)
    if value not in (None, True, False):
        raise wrong(name, "must be true or false")
    return bool(value)


def check_names(body: dict) -> None:
    """Raise `ApiError` that names the fields the server does not know or cannot do."""
    given = {name: value for name, value in body.items() if value is not None}
    known = (*USED, *IGNORED, *NEUTRAL)
    unsupported = [name for name in given if name in NEUTRAL and given[name] not in NEUTRAL[name]]
    unknown = [short(name) for name in given if name not in known]
    if not unsupported and not unknown:
        return
    reasons = [f"{name}: is not supported with this value" for name in unsupported]
    for name in unknown[:NAMED]:  # to compare names takes time
        close = difflib.get_close_matches(name, known, 1)
        reasons.append(f"{name}: unknown" + (f"; did you mean {close[0]}?" if close else ""))
    if (more := len(unknown) - NAMED) > 0:
        reasons.append(f"{more} more are unknown")
    raise ApiError(400, ". ".join(reasons), "unknown_parameter", (unsupported + unknown)[0])


def check_keys(value: dict, known: Iterable[str], where: str) -> None:
    """Raise `ApiError` that names the first key of an object inside a request that is unknown."""
    for name, given in value.items():
        if given is not None and name not in known:
            raise ApiError(400, f"{where}.{short(name)} is unknown", "unknown_parameter", where)
