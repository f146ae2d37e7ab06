"""Columns of a table by their role in a pair, and rows of single answers joined into pairs."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError

Record = tuple[int, str, Any]  # number from 1, place, the record or the error of its line

# Names that columns go by, the role's own first; compared in lower case, blanks as underscores.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "video": ("video", "video_path", "video_file", "video_name", "video_id", "videos", "vid"),
    "prompt": ("prompt", "question", "query", "instruction", "conversations"),
    "chosen": (
        *("chosen", "preferred_response", "preferred_answer", "chosen_response", "chosen_answer"),
        *("answer_chosen", "response_chosen", "positive", "winner", "accepted"),
    ),
    "rejected": (
        *("rejected", "dispreferred_response", "dispreferred_answer", "rejected_response"),
        *("rejected_answer", "answer_rejected", "response_rejected", "negative", "loser"),
        *("dis_preferred_response", "dis_preferred_answer", "non_preferred_response"),
    ),
    "answer": ("answer", "response", "output", "completion"),
    "preferred": ("preferred", "preference", "label", "is_chosen", "is_preferred"),
}
ROLES = (*SYNONYMS, "id", "video_id", "kind", "segment", "provenance")
# Fields that identify ms-swift's records, beside `messages`.
SWIFT = ("rejected_response", "rejected_messages", "rejected_videos")
# Fields of its earlier form, without messages, and their names here.
QUERY = {"query": "prompt", "response": "chosen", "rejected_response": "rejected"}
# Roles that keep an empty cell, as an empty text; empty cells of others are left out.
_TEXTS = ("prompt", "chosen", "rejected", "answer", "preferred")
# Cells of text that hold JSON.
_JSON = ("segment", "provenance")
# Fields that two answers must share to make a pair.
_ASKED = ("video", "image", "images", "system", "history", "prompt")
YES = ("1", "1.0", "true", "yes", "chosen", "preferred", "positive", "good", "win")
NO = ("0", "0.0", "-1", "false", "no", "rejected", "dispreferred", "negative", "bad", "lose")


def parse_columns(values: Iterable[str]) -> dict[str, str]:
    """Return `role=name` flags as a mapping of roles to columns.

    Raises:
        InputError: The flag has another form, or there is no such role.
    """
    columns = {}
    for value in values:
        role, equals, name = value.partition("=")
        if not equals or not name or role not in ROLES:
            raise InputError(f"--column={value}: must be role=name, role one of {', '.join(ROLES)}")
        columns[role] = name
    return columns


def with_instruction(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with `instruction` and `input` joined by a newline as its `prompt`, as
    LlamaFactory does; unchanged if it has another question, or if one of them is not a string.
    """
    asked = ("prompt", "question", "conversations", "messages")
    parts = [record[name] for name in ("instruction", "input") if record.get(name)]
    if not parts or any(record.get(n) for n in asked) or not all(isinstance(p, str) for p in parts):
        return dict(record)
    rest = {k: v for k, v in record.items() if k not in ("instruction", "input")}
    return rest | {"prompt": "\n".join(parts)}


def renamed(
    path: Path, records: Iterator[Record], columns: Mapping[str, str], stills: bool
) -> Iterator[Record]:
    """Yield records under the names of their roles; rows of single answers become pairs.

    Args:
        path: Of the table, for messages.
        columns: Role to name, for columns with other names.
        stills: Whether the table may lack a column of videos.

    Raises:
        InputError: No known column has a role that is needed.
    """
    rows = list(records)
    there = list(dict.fromkeys(n for *_, r in rows if isinstance(r, dict) for n in r))
    if not there:
        yield from rows
        return
    first = next(record for *_, record in rows if isinstance(record, dict))
    whole = (
        ("messages" in there and ({*SWIFT} & {*there} or "prompt" not in there))
        or ("prompt" not in there and isinstance(first.get("chosen"), list))
        or QUERY.keys() <= {*there}
    )
    # The names in whole conversations are those that `data/conversations.py` knows.
    roles = _named(path, there, columns) if whole else _roles(path, there, columns, stills)
    if roles.get("prompt", "").lower() == "instruction":
        roles["instruction"] = roles.pop("prompt")
        roles |= {name.lower(): name for name in there if name.lower() == "input"}
    for i, (number, where, record) in enumerate(rows):
        if isinstance(record, dict):
            names = {name: role for role, name in roles.items()}
            kept = {k for k in record if record[k] != "" or names.get(k) in _TEXTS}
            new = {names.get(k) or k: v for k, v in record.items() if k in kept}
            rows[i] = (number, where, _parsed(with_instruction(new)))
    yield from rows if whole or "chosen" in roles else _paired(rows)


def json_of(text: str) -> Any:
    """Return the value of JSON, or the `ValueError` that says why it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also absurdly long numbers and deep nesting
        return ValueError(f"not JSON: {error}")


def _parsed(record: dict[str, Any]) -> dict[str, Any] | ValueError:
    """Return a record whose cells of JSON are read, or what is wrong with one of them."""
    for field in _JSON:
        if isinstance(text := record.get(field), str):
            record[field] = json_of(text)
            if isinstance(record[field], ValueError):
                return ValueError(f"{field}: {record[field]}")
    return record


def _named(path: Path, there: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return what `columns` says; raise `InputError` if there is no such column."""
    if missing := [name for name in columns.values() if name not in there]:
        raise InputError(f"{path}: no column {missing[0]!r}; it has {', '.join(there)}")
    return dict(columns)


def _roles(
    path: Path, there: list[str], columns: Mapping[str, str], stills: bool
) -> dict[str, str]:
    """Return the column of each role: what `columns` says, else the one with a known name."""
    roles = _named(path, there, columns)
    plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in there}
    for role, synonyms in SYNONYMS.items():
        if role not in roles:
            free = (plain[s] for s in synonyms if s in plain)
            if name := next((name for name in free if name not in roles.values()), None):
                roles[role] = name
    if not {"chosen", "rejected"} & roles.keys() and {"answer", "preferred"} <= roles.keys():
        needed: tuple[str, ...] = ("video", "prompt", "answer", "preferred")
    else:
        needed = ("video", "prompt", "chosen", "rejected")
        for role in ("answer", "preferred"):
            if role not in columns:
                roles.pop(role, None)
    if lacking := [role for role in needed[stills:] if role not in roles]:
        raise InputError(
            f"{path}: no column is known to hold {', '.join(lacking)}; it has {', '.join(there)}; "
            f"say --column {lacking[0]}=NAME"
        )
    if roles["prompt"] == "conversations":
        del roles["prompt"]  # `adapt` knows it
    return roles


def _paired(rows: list[Record]) -> Iterator[Record]:
    """Yield a pair of every preferred answer and the next rejected one to the same question."""
    waiting: dict[tuple[str, ...], dict[bool, list[Record]]] = defaultdict(
        lambda: {True: [], False: []}
    )
    for number, where, record in rows:
        if not isinstance(record, dict):
            yield number, where, record
            continue
        label = str(record.get("preferred", "")).strip().lower()
        if label not in YES + NO:
            reason = f"preferred must be one of {', '.join(YES + NO)}, not {label!r}"
            yield number, where, ValueError(reason)
            continue
        good = label in YES
        sides = waiting[tuple(str(record.get(name)) for name in _ASKED)]
        if not sides[not good]:
            sides[good].append((number, where, record))
            continue
        _, _, other = sides[not good].pop(0)
        chosen, rejected = (record, other) if good else (other, record)
        pair = {k: v for k, v in chosen.items() if k not in ("answer", "preferred")}
        pair |= {"chosen": chosen.get("answer"), "rejected": rejected.get("answer")}
        yield number, where, pair
    for sides in waiting.values():
        for number, where, _ in sides[True] + sides[False]:
            yield number, where, ValueError("no other answer to this question to pair it with")
