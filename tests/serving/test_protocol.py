"""What a request may say: names, values, and what is refused rather than ignored."""

import pytest

from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.protocol import parse_chat
from tpo_jax.serving.settings import Settings

ASKED = {"model": "tpo", "messages": [{"role": "user", "content": "Why?"}]}


def parsed(**more):
    return parse_chat(ASKED | more, Settings())


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
