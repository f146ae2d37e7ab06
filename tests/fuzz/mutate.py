"""Good inputs made bad: bytes flipped, cut, doubled, mixed; JSON values replaced by wild ones."""

import copy
import json
import re
from typing import Any

import numpy as np

WILD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, -(2**70), 1e308, float("nan"), float("-inf")),
    *("", " ", "\0", "\x1b[2J", "\ud800", "﷽" * 500, "a" * 50_000, "0x7f", "1e999"),
    *("..", "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "~", "file:///x"),
    *("$(touch owned)", "`touch owned`", "; touch owned", "%s%n", "{0.__class__}", "<image>" * 3),
    *("<|im_end|>", "<script>", [], {}, [[]], [None], {"": {}}, [0.5, -0.5], ["a", 1, {}]),
)
_NUMBERS = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\1"]


def _place(rng: np.random.Generator, size: int) -> int:
    """Draw an offset, often near the beginning or the end, where headers are."""
    near = int(rng.integers(0, 1 + min(size, 4096)))
    return (near, size - near, int(rng.integers(0, size + 1)))[int(rng.integers(3))]


def data(rng: np.random.Generator, original: bytes, other: bytes = b"") -> bytes:
    """Change bytes one to eight times; `other` is what a piece may be taken from."""
    value = bytearray(original)
    for _ in range(int(rng.integers(1, 9))):
        at, length = _place(rng, len(value)), int(2 ** rng.uniform(0, 12))
        match int(rng.integers(8)):
            case 0 if at < len(value):
                value[at] ^= 1 << int(rng.integers(8))
            case 1:
                value[at : at + 4] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
            case 2:
                del value[at : at + length]
            case 3:
                value[at:at] = rng.bytes(min(length, 64))
            case 4:
                value[at:at] = value[at : at + length]
            case 5 if rng.random() < 0.3:
                del value[at:]
            case 6:
                start = _place(rng, len(other))
                value[at : at + length] = other[start : start + length]
            case 7:
                value[at : at + length] = bytes(len(value[at : at + length]))
    return bytes(value)


def text(rng: np.random.Generator, original: str) -> bytes:
    """Replace a number, a word or a line by something wild, or change any bytes."""
    if rng.random() < 0.4:
        return data(rng, original.encode("utf-8", "surrogatepass"), original.encode())
    pattern = (r"-?\d+(\.\d+)?", r"\w+", r"[^\n]*\n?", r"[^\w\s]")[int(rng.integers(4))]
    found = list(re.finditer(pattern, original)) or [re.match("", original)]
    match = found[int(rng.integers(len(found)))]
    assert match
    wild = WILD[int(rng.integers(len(WILD)))]
    value = wild if isinstance(wild, str) else json.dumps(wild)
    changed = original[: match.start()] + value + original[match.end() :]
    return changed.encode("utf-8", "surrogatepass")


def values(rng: np.random.Generator, original: Any) -> Any:
    """Return a copy of a JSON value with one to three parts replaced, removed or doubled."""
    changed = copy.deepcopy(original)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(changed))
        if not places:
            break
        holder, key = places[int(rng.integers(len(places)))]
        match int(rng.integers(5)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key}_"] = holder.pop(key)
            case 2:
                holder[key] = [holder[key], holder[key]]
            case _:
                holder[key] = copy.deepcopy(WILD[int(rng.integers(len(WILD)))])
    return changed


def nested(rng: np.random.Generator, original: Any) -> bytes:
    """Return JSON of `values`, sometimes so deep that a reader that recurses breaks."""
    encoded = json.dumps(values(rng, original), ensure_ascii=bool(rng.integers(2)))
    if rng.random() < 0.02:
        depth = int(rng.choice([100, 2_000, 200_000]))
        encoded = encoded.replace(":", ":" + "[" * depth + "]" * depth + ",", 1)
    return encoded.encode("utf-8", "surrogatepass")


def _places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(items):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)
