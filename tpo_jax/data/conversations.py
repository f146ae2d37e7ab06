"""Conversations of published formats as the fields of a pair: history, prompt and two answers.

| format | what is asked | answers |
|---|---|---|
| ms-swift | `messages` | its last, and `rejected_response` or `rejected_messages`; with
`rejected_videos` alone the same one |
| ms-swift, earlier | `query`, `system`, `history` | `response` and `rejected_response` |
| ShareGPT, LLaVA | `conversations` or `messages`, `system` | `chosen`, `rejected`: text or turn |
| TRL | `prompt`, a list of messages | `chosen` and `rejected`, lists of messages |
| TRL, implicit | in both answers' lists | the last messages of `chosen` and `rejected` |
| Alpaca | `prompt`, or `instruction` and `input`; `system`, `history` | `chosen` and `rejected` |

Both answers must follow the same messages, which are all kept; what cannot be kept is refused.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from tpo_jax.data.columns import QUERY, SWIFT, with_instruction
from tpo_jax.data.messages import REPLIES, Turn, check_losses, read_turns
from tpo_jax.data.prompts import check_answer, check_placeholders, place_visual
from tpo_jax.errors import InputError
from tpo_jax.families.template import IMAGE, PLACEHOLDERS, Message, conversation_of

# Fields that would change what a model is shown and that no template here can hold.
_REFUSED = (
    *("tools", "rejected_tools", "tool_calls", "audios", "rejected_audios"),
    *("objects", "rejected_objects"),  # boxes that ms-swift writes into the texts
)
_NO_JSON = ("[]", "{}")  # LlamaFactory stores JSON as text


def adapt(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of a format above with `video`, `prompt`, `history`, `chosen` and `rejected`;
    any other one as it is.

    Raises:
        ValueError: The turns or videos are malformed, or hold what cannot be rendered.
    """
    new = with_instruction(record)
    if "messages" not in new and new.keys() >= QUERY.keys():
        new = {QUERY.get(name, name): value for name, value in new.items()}
    _refuse(new)
    answers = any(new.get(name) for name in ("chosen", "rejected"))
    if "messages" in new and (not answers or any(new.get(n) is not None for n in SWIFT[:2])):
        _from_swift(new)
    elif "messages" in new and _is_asked(new):
        new["conversations"] = new.pop("messages")
    names = [name for name in ("chosen", "rejected") if new.get(name)]
    shapes = [type(new.get(name)) for name in ("prompt", *names)]
    context = ("conversations", "system", "history", "messages")
    videos: list[Any] = []
    if names and ({list, dict} & {*shapes} or any(new.get(name) for name in context)):
        asked = _asked(new)
        sides = {name: _side(asked, name, new[name]) for name in names}
        system, history = new.pop("system", None), new.pop("history", None)
        whole = {n: _with_context(side, system, history) for n, side in sides.items()}
        for side in whole.values():
            check_losses(side)
        said = (asked, *whole.values())
        videos = [video for turns in said for video in _named(turns, "video")]
        _images(new, [found for turns in said if (found := _named(turns, "image"))])
        spoken = {n: [turn.message for turn in side] for n, side in whole.items()}
        _same_messages(new, spoken)
        new |= _split(spoken)
    _one_video(new, "video", videos)
    _one_video(new, "rejected_video", [])
    if new.get("rejected_images") == new.get("images"):
        new.pop("rejected_images", None)
    if new.get("rejected_images"):
        raise ValueError("has rejected_images; both answers must be on the same images")
    return new


def _is_asked(fields: Mapping[str, Any]) -> bool:
    """Return whether `messages` are what is asked: nothing else says it, answers are replies."""
    if any(fields.get(name) for name in ("prompt", "question", "conversations")):
        return False
    said = fields.get("chosen") or fields.get("rejected")
    first = said[0] if isinstance(said, list) and said else said
    return not isinstance(first, dict) or (first.get("role") or first.get("from")) in REPLIES


def _refuse(fields: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if fields.get(name) and fields[name] not in _NO_JSON:
            raise ValueError(f"has {name}, which no prompt template here can hold")
    asked = [n for n in ("prompt", "question", "conversations", "messages") if fields.get(n)]
    if clash := [n for n in ("instruction", "input", "query") if asked and fields.get(n)]:
        raise ValueError(f"has {asked[0]} and {clash[0]}, which both say what is asked")


def _from_swift(new: dict[str, Any]) -> None:
    """Spell ms-swift's fields as TRL's implicit form: two whole conversations."""
    messages, rejected = new.pop("messages"), new.pop("rejected_messages", None)
    response = new.pop("rejected_response", None)
    if new.get("rejected_videos") == new.get("videos"):
        new.pop("rejected_videos", None)
    if clash := {"prompt", "question", "conversations", "chosen", "rejected"} & new.keys():
        raise ValueError(f"has messages and {min(clash)}, which name the same texts")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of messages")
    if rejected is not None and response is not None:
        raise ValueError("must have one of rejected_response and rejected_messages")
    if response is not None:
        answer = {"role": "assistant", "content": response}
        rejected = [*messages[:-1], *(response if isinstance(response, list) else [answer])]
    if rejected is None:
        if not new.get("rejected_videos"):
            raise ValueError("must have rejected_response, rejected_messages or rejected_videos")
        rejected = messages  # the same answer, worse on the other video
    new["chosen"], new["rejected"] = messages, rejected


def _named(turns: Sequence[Turn], kind: str) -> list[Any]:
    return [v for turn in turns for name, v in turn.visuals if name == kind and v]


def _images(new: dict[str, Any], found: list[list[Any]]) -> None:
    """Set `images` from what the messages named, once or in the conversation of each answer."""
    if not found:
        return
    beside = [new.pop(name) for name in ("image", "images") if new.get(name)]
    given = [*found, *(v if isinstance(v, list) else [v] for v in beside)]
    if any(images != given[0] for images in given):
        raise ValueError("names other images in one place than in another")
    new["images"] = given[0]


def _same_messages(new: dict[str, Any], sides: Mapping[str, Sequence[Message]]) -> None:
    """Remove `messages`, which must repeat a conversation, with its answer or without."""
    if not new.get("messages"):
        return
    messages = [turn.message for turn in read_turns(new.pop("messages"), "messages")]
    if all(messages not in ([*side], [*side[:-1]]) for side in sides.values()):
        raise ValueError("has messages other than those that both answers follow; leave one out")


def _asked(new: dict[str, Any]) -> list[Turn]:
    """Remove and return what both answers reply to; nothing where the answers' lists hold it."""
    given = [value for n in ("prompt", "question") if (value := new.pop(n, None)) is not None]
    if len(given) > 1:
        raise ValueError("has both prompt and question, which name the same field")
    turns = [turn for value in given for turn in _texts(value, "prompt")]
    earlier = (
        read_turns(new.pop("conversations"), "conversations") if "conversations" in new else []
    )
    # The last one may already be an answer, which both answers replace.
    if len(earlier) > 1 and earlier[-1].role == "assistant":
        earlier = earlier[:-1]
    if not turns or not earlier:
        return turns or earlier
    if len(earlier) == 1:
        return turns
    if earlier[-1].content.strip() != turns[-1].content.strip():
        raise ValueError("conversations does not end with the prompt that stands beside it")
    return earlier


def _side(asked: list[Turn], name: str, value: Any) -> list[Turn]:
    """Return the conversation that ends with an answer."""
    turns = _texts(value, name, "assistant")
    if not asked or turns[0].role == "assistant":
        return asked + turns
    # Such a list repeats what was asked and, where that is a text, may hold what came before it.
    repeated = [(turn.role, turn.content.strip()) for turn in turns[:-1][-len(asked) :]]
    if repeated != [(turn.role, turn.content.strip()) for turn in asked]:
        raise ValueError(f"{name} does not repeat the prompt that stands beside it")
    return turns


def _with_context(side: list[Turn], system: Any, history: Any) -> list[Turn]:
    """Return turns with those of the fields `system` and `history` before them."""
    if history:
        pairs = history if isinstance(history, list) else []
        if pairs and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            roles = ("user", "assistant")
            history = [
                {"role": role, "content": text}
                for pair in pairs
                for role, text in zip(roles, pair, strict=True)
            ]
        side = read_turns(history, "history") + side
    if not system:
        return side
    if not isinstance(system, str):
        raise ValueError("system must be a text")
    if side[0].role != "system":
        return [Turn("system", system), *side]
    if side[0].content != system:
        raise ValueError("has a system text and another one in its messages")
    return side


def _split(sides: Mapping[str, Sequence[Message]]) -> dict[str, Any]:
    """Return the fields of the messages that the sides share and of the answers after them."""
    for name, side in sides.items():
        if side[-1].role != "assistant":
            raise ValueError(f"{name} must end with a message of the assistant")
    contexts = [list(side[:-1]) for side in sides.values()]
    if any(context != contexts[0] for context in contexts):
        raise ValueError("chosen and rejected follow different messages; they must share them")
    answers: dict[str, Any] = {name: side[-1].content for name, side in sides.items()}
    if not contexts[0]:
        return answers
    *history, question = conversation_of(contexts[0])
    answers["prompt"] = question.content
    return answers | ({"history": history} if history else {})


def _texts(value: Any, name: str, role: str = "user") -> list[Turn]:
    return [Turn(role, value)] if isinstance(value, str) else read_turns(value, name)


def _one_video(new: dict[str, Any], name: str, found: list[Any]) -> None:
    """Set the field `name` from itself, its plural and what the messages named, all the same."""
    given = [new.pop(field) for field in (name, f"{name}s") if field in new]
    values = [*found, *(v for one in given for v in (one if isinstance(one, list) else [one]))]
    paths = {str(path): path for v in values if (path := _path(name, v)) is not None}
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} videos, one is needed: {', '.join(map(repr, paths))}")
    if paths:
        (new[name],) = paths.values()


def _path(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        # Qwen's example code names local files `file://…`.
        return value.removeprefix("file://") if isinstance(value, str) else value
    # A video feature of `datasets`.
    if not value.get("path"):
        raise ValueError(f"{name} is embedded, without a path; save it as a file")
    return value["path"]


def place_visuals(
    messages: list[Message], video: bool, images: int
) -> tuple[tuple[Message, ...], str]:
    """Return what was said before the question, with a placeholder for a visual in it, and the
    question.

    If the user has several turns and none holds a placeholder, the visual opens the first one, as
    in ms-swift, TRL and LLaVA.

    Args:
        messages: The question is the last one, and the user's.
        video: Whether the visual is a video; else it is images, or none.
        images: Number of images.

    Raises:
        ValueError: More or other placeholders than visuals, an empty question, or a text that no
            template can hold.
    """
    for message in messages:
        check_characters("prompt" if message is messages[-1] else "history", message.content)
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    marks = "<video>" if video else " ".join([IMAGE] * images)
    marked = any(p in messages[i].content for i in asked for p in PLACEHOLDERS)
    if marks and not marked and len(asked) > 1:
        first = messages[asked[0]]
        messages[asked[0]] = Message("user", f"{marks}\n{first.content}")
    try:
        if video:
            shown, at = place_visual(messages)
            messages = [*shown]
            if at < len(messages) - 1:
                messages[at] = Message("user", f"<video>\n{messages[at].content}")
        else:
            check_placeholders(messages, images)
            for message in messages:
                check_answer(message.content)
    except InputError as error:
        raise ValueError(f"prompt: {error}") from error
    *history, question = messages
    if not question.content.strip():
        raise ValueError("prompt is empty")
    return tuple(history), question.content.strip()


def check_characters(name: str, text: str) -> None:
    """Raise `ValueError` for a control character that is no white space."""
    # Vertical tab, form feed and next line are breaks in what people write.
    if odd := [c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\r\t\v\f\x85"]:
        raise ValueError(f"{name} holds the control character {odd[0]!r}")
