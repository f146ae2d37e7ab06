"""What a request may say: names, values, and what is refused rather than ignored."""

import pytest

from tpo_jax.families.template import Message
from tpo_jax.serving.chat import find_model
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.fields import parse_json
from tpo_jax.serving.media import frame_urls
from tpo_jax.serving.protocol import parse_chat
from tpo_jax.serving.settings import ServerSettings

ASKED = {"model": "tpo", "messages": [{"role": "user", "content": "Why?"}]}


def parsed(**more):
    return parse_chat(ASKED | more, ServerSettings(video_of_images=2))


def said(role, *parts):
    """A message of texts, images ("i") and videos ("v")."""
    kinds = {"i": "image_url", "v": "video_url"}
    content = [
        {"type": kinds[part], kinds[part]: {"url": part}}
        if part in kinds
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("field", "neutral", "other"),
    [
        ("min_p", 0.0, 0.1),
        ("best_of", 1, 2),
        ("n", 1, 2),
        ("tool_choice", "auto", "required"),
        ("logprobs", False, True),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("guided_json", None, {}),
        ("temprature", None, 0.5),
    ],
)
def test_a_field_is_refused_unless_it_changes_nothing(field, neutral, other) -> None:
    assert parsed(**{field: neutral}) == parsed(**{field: None}) == parsed()
    with pytest.raises(ApiError, match=field) as caught:
        parsed(**{field: other})
    assert (caught.value.status, caught.value.param) == (400, field)


def test_all_refused_fields_are_named_at_once() -> None:
    assert parsed(user="me", metadata={"a": "b"}) == parsed()
    with pytest.raises(ApiError) as caught:
        parsed(min_p=0.5, temprature=1, user="me")
    message = caught.value.message
    assert "min_p" in message and "did you mean temperature" in message and "user" not in message
    with pytest.raises(ApiError, match="stream_options.usage"):
        parsed(stream_options={"usage": True})


def test_messages_stay_short_whatever_names_a_client_gives() -> None:
    many, long = {f"temperatur_{i}": 1 for i in range(10_000)}, "x" * 10_000
    for more in (many, {long: 1}, {"stream_options": {long: 1}}):
        with pytest.raises(ApiError, match="unknown") as caught:
            parsed(**more)
        assert len(caught.value.message + caught.value.param) < 1500
    with pytest.raises(ApiError, match="9990 more are unknown"):
        parsed(**many)
    with pytest.raises(ApiError, match="no prompt template") as caught:
        parsed(messages=[{"role": "user", "content": "Why?", long: 1, **many}])
    assert len(caught.value.message) < 1000
    with pytest.raises(ApiError, match="available: tpo") as caught:
        find_model({"tpo": None}, long)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("body", [rb'{"\ud800": 1}', rb'{"a": "\uDC00x"}', b'{"\xed\xa0\x80": 1}'])
def test_what_is_no_unicode_is_refused(body) -> None:
    with pytest.raises(ApiError, match="not JSON") as caught:
        parse_json(body)
    assert caught.value.status == 400
    assert parse_json(rb'{"\ud83d\ude00": "\\ud800"}') == {"😀": "\\ud800"}


def test_stop_strings() -> None:
    for value, expected in [
        ("\n", ("\n",)),
        (["a", "b"], ("a", "b")),
        ([], ()),
        ("", ()),
        (None, ()),
    ]:
        assert parsed(stop=value).stop == expected
    for wrong in (["a"] * 5, [""], [1], 3, {"a": 1}):
        with pytest.raises(ApiError, match="stop"):
            parsed(stop=wrong)


@pytest.mark.parametrize("turn", [0, 1])
def test_one_video_anywhere_in_a_conversation(turn) -> None:
    messages = [said("user", "Who?"), said("assistant", "One <image>."), said("user", "Why?")]
    messages[2 * turn] = said("user", "v", "What?")
    asked = parsed(messages=[said("developer", "Be brief."), *messages])
    assert asked.conversation[0] == Message("system", "Be brief.")
    assert asked.conversation[2] == Message("assistant", "One <image>.")
    assert asked.conversation[1 + 2 * turn] == Message("user", "<image>\nWhat?")
    assert (asked.shown.kind, asked.shown.parts[0].param) == (
        "video",
        f"messages[{1 + 2 * turn}].content[0]",
    )


def test_images_stay_in_their_messages() -> None:
    first, second = said("user", "i", "One?"), said("user", "<image> and <image>?", "i", "i")
    asked = parsed(messages=[first, said("assistant", "Yes."), second])
    assert [m.content for m in asked.conversation] == [
        "<image>\nOne?",
        "Yes.",
        "<image> and <image>?",
    ]
    assert asked.shown.kind == "images"
    # All of them in one message are a video's frames.
    asked = parsed(messages=[said("user", "i", "i", "One?"), said("assistant", "Yes."), second])
    assert asked.shown.kind == "images"
    asked = parsed(messages=[said("user", "i", "i", "One?")])
    assert asked.conversation[0].content == "<image>\nOne?" and asked.shown.kind == "frames"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "end with a user"),
        ([said("user", "a"), said("assistant", "b")], "end with a user"),
        ([said("user", "a"), said("system", "b"), said("user", "c")], "first place"),
        ([said("tool", "a"), said("user", "b")], r"messages\[0\] must have a role"),
        ([said("user", "a", "v"), said("user", "b", "i")], "one video"),
        ([said("assistant", "v"), said("user", "b")], r"messages\[0\].content\[0\]"),
        ([said("user", " ")], "text"),
        ([{"role": "user", "content": None}], "content"),
        (
            [
                said("user", "a"),
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                said("user", "b"),
            ],
            r"messages\[1\] has tool_calls, which no prompt template here can hold",
        ),
        ([said("user", "a") | {"reasoning_content": "So."}], "has reasoning_content"),
    ],
)
def test_conversations_that_are_refused(messages, message) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        parsed(messages=messages)
    assert caught.value.status == 400


def test_keys_of_a_message_are_not_ignored() -> None:
    """A client may send back what a server said, and records of its own."""
    said_back = {"refusal": None, "annotations": [], "tool_calls": None, "name": "anna", "id": "1"}
    messages = [said("user", "v", "Who?"), said("assistant", "A cat."), said("user", "Why?")]
    wanted = parsed(messages=messages)
    messages[1] |= said_back
    messages[0]["content"][1]["cache_control"] = {"type": "ephemeral"}
    assert parsed(messages=messages) == wanted
    for part in range(2):
        messages[0]["content"][part]["fps"] = 2
        with pytest.raises(ApiError, match=rf"messages\[0\].content\[{part}\].fps is unknown"):
            parsed(messages=messages)
        del messages[0]["content"][part]["fps"]


def test_frames_in_a_data_url() -> None:
    url = "data:video/jpeg;base64,QQ==,Qg=="
    assert frame_urls(url, 2) == ["data:video/jpeg;base64,QQ==", "data:video/jpeg;base64,Qg=="]
    for other in ("data:video/mp4;base64,QQ==", "a,b.mp4"):
        assert frame_urls(other, 1) == [other]
    with pytest.raises(ApiError, match="2 frames, at most 1"):
        frame_urls(url, 1)
    # A long head would be repeated with every frame.
    for wrong in ("data:video/jpeg;base64", f"data:video/jpeg;{'x' * 1000};base64,QQ==,QQ=="):
        with pytest.raises(ApiError, match="data:video/jpeg;base64,FRAME"):
            frame_urls(wrong, 128)
    message = said("user", "v", "What?")
    message["content"][0]["video_url"]["url"] = url
    assert parsed(messages=[message]).shown.kind == "frames"
