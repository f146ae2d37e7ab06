"""Prompts are filled; replies are parsed or refused, never guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.curation import templates
from tpo_jax.errors import InputError

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    lambda text: text.strip() and not any(m in text for m in ("<|im", "<image>", "<video>"))
)


@given(WORDS, WORDS)
def test_questions_in_the_requested_format(question, answer):
    found = templates.parse_question(f"Q: {question}\nA: {answer}\n")
    assert found == (question.strip(), answer.strip())


@given(st.text())
def test_any_reply_is_parsed_or_refused_in_one_line(reply):
    for parse in (templates.parse_question, templates.parse_verdict):
        try:
            parse(reply)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("reply", ["None", "none.", " None\n"])
def test_a_question_writer_may_decline(reply):
    assert templates.parse_question(reply) is None


@pytest.mark.parametrize(
    "reply",
    ["", "Q: Who?", "A: He.\nQ: Who?", "Sure! Q: Who?\nA: He.", "Q: Who?\nA:", "Q: W\x07?\nA: b"],
)
def test_questions_in_another_format_are_refused(reply):
    with pytest.raises(ValueError):
        templates.parse_question(reply)


@pytest.mark.parametrize("reply", ["1: Yes\n2: No\n3: Yes", "1. yes.\n\n2) NO\n 3: Yes \n"])
def test_a_verdict(reply):
    assert templates.parse_verdict(reply) == templates.KEPT


@pytest.mark.parametrize(
    "reply",
    [
        "Yes, Answer 1 is better.",
        "1: Yes\n2: No",
        "1: Yes\n2: No\n3: Yes\nBecause it is right.",
        "1: Yes\n3: No\n2: Yes",
        "1: Yes\n2: Equally\n3: Yes",
        "1: Yes and No\n2: No\n3: Yes",
        "",
    ],
)
def test_verdicts_in_another_format_are_refused(reply):
    with pytest.raises(ValueError, match="the judge did not reply in three lines"):
        templates.parse_verdict(reply)


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        ("a red CIRCLE.", templates.KEPT),
        ("It is blue", ("no", "yes", "no")),
        ("No idea.", ("equally", "yes", "no")),
    ],
)
def test_a_verdict_from_the_judges_own_answer(own, verdict):
    assert templates.agreement(own, "A red circle", "It is blue.") == verdict


def test_every_type_has_a_focus_and_every_field_is_filled():
    for name in templates.TYPES:
        text = templates.fill(
            "question_v1", caption="A $dog.", focus=templates.focus("focus_v1", name)
        )
        assert "A $dog." in text and "$focus" not in text
    with pytest.raises(InputError, match="no prompt '../caption_v1'; choose from caption_v1, "):
        templates.load("../caption_v1")
