"""Prompts and answers to rows: texts are checked, written in the model's template and tokenised.

As in the original code the text before a visual, the text after it and the answer are tokenised
independently.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from tpo_jax import families
from tpo_jax.data.rows import Row, Size, Text, joined, pack
from tpo_jax.errors import InputError
from tpo_jax.families.template import (
    IMAGE,
    PLACEHOLDERS,
    Message,
    Opening,
    Pieces,
    Question,
    Template,
    conversation_of,
    visual_at,
)


def strip_placeholder(question: str) -> str:
    """Return the question without its visual placeholder, which the template sets again.

    Raises:
        InputError: more than one `<image>` or `<video>`.
    """
    if (count := sum(question.count(p) for p in PLACEHOLDERS)) > 1:
        raise InputError(f"{count} <image> or <video> placeholders, one at most is allowed")
    for placeholder in PLACEHOLDERS:
        question = question.replace(placeholder, "")
    return question.strip()


def check_placeholders(question: Question, images: int) -> None:
    """Raise `InputError` unless the user's messages have an `<image>` for every image, or none."""
    asked = [m.content for m in conversation_of(question) if m.role == "user"]
    for text in (chunk for content in asked for chunk in content.split(IMAGE)):
        check_text(text)
    if (given := sum(content.count(IMAGE) for content in asked)) not in (0, images):
        raise InputError(f"{given} <image> placeholders for {images} images")


def place_visual(question: Question) -> tuple[tuple[Message, ...], int]:
    """Return the messages of a question on a video without their placeholder, and the index of the
    message it was in, where the video stands; without a placeholder, of the last one.

    Raises:
        InputError: more than one placeholder, one in a question that is a text alone, or a text
            that no template can hold.
    """
    messages = list(conversation_of(question))
    if isinstance(question, str):
        check_text(question)
    strip_placeholder("\n".join(m.content for m in messages if m.role == "user"))
    at = visual_at(messages)
    if any(placeholder in messages[at].content for placeholder in PLACEHOLDERS):
        messages[at] = Message("user", strip_placeholder(messages[at].content))
    for message in messages:
        check_answer(message.content)
    return tuple(messages), at


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogate, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_answer(text: str) -> str:
    """Return the text; raise `InputError` if it is not valid Unicode or holds a marker that only a
    template may set. A placeholder in an answer is text.
    """
    if not is_unicode(text):
        raise InputError("the text is no valid Unicode")
    return _without(families.markers(), text)


def check_text(text: str) -> str:
    """Return the text of a question; raise `InputError` as `check_answer`, or for a placeholder."""
    return _without(PLACEHOLDERS, check_answer(text))


def _without(markers: Iterable[str], text: str) -> str:
    for marker in markers:
        if marker in text:
            raise InputError(f"the text holds {marker}, which only the template may set")
    return text


def build_row(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    visuals: int | Sequence[int],
    *,
    template: Template,
    opening: Opening = "",
    cut: str = "answer",
    size: Size = Size(),  # noqa: B008, a constant
) -> Row:
    """Build the row of `Q` questions with `A` answers each, on one video or on images.

    Args:
        tokenizer: from `data.tokenizer.load_tokenizer`.
        questions: `Q` questions, texts or conversations. A text on a video has no placeholder, a
            conversation one at most (`place_visual`). A question on images has one `<image>` per
            image, or none: then the images open its last message.
        answers: `[Q][A]` texts. Their tokens are labelled, and what the template labels after them.
        visuals: number of visual tokens of the video, or a sequence with that of every image, or of
            every group of frames that has an opening; `()` for text.
        template: how prompt and answer are written.
        opening: from `Template.tokens_and_opening`.
        cut: 'answer': before the last token of the prompt, for one question; 'video': after the
            last visual token and the tokens of the opening, for any number of questions.
        size: P and R to pad to.

    Raises:
        InputError: a marker in a text, placeholders that do not fit the images, or a row longer
            than P or R.
    """
    prefix, tails = _prompts(tokenizer, questions, visuals, template, opening, cut)
    end = _text(tokenizer, template.end)
    continuations = []
    for tail, group in zip(tails, answers, strict=True):
        texts = [_text(tokenizer, [(check_answer(answer), True)]) for answer in group]
        continuations.append([joined([tail, text, end]) for text in texts])
    return pack(prefix, continuations, _each(visuals), labelled=True, size=size)


def build_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    visuals: int | Sequence[int],
    *,
    template: Template,
    opening: Opening = "",
    cut: str = "answer",
    size: Size = Size(),  # noqa: B008, a constant
) -> Row:
    """Build a row for generation as `build_row` does, but `A` is 1, there is no target, and the
    input is the rest of the prompt.

    The hidden state of the last input token of a question predicts its first answer token.
    """
    prefix, tails = _prompts(tokenizer, questions, visuals, template, opening, cut)
    return pack(prefix, [[tail] for tail in tails], _each(visuals), labelled=False, size=size)


def _each(visuals: int | Sequence[int]) -> Sequence[int]:
    return [visuals] if isinstance(visuals, int) else visuals


def _text(tokenizer: Tokenizer, pieces: Pieces) -> Text:
    parts = []
    for text, labelled in pieces:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        parts.append(Text(ids, [labelled] * len(ids)))
    return joined(parts)


def _prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    visuals: int | Sequence[int],
    template: Template,
    opening: Opening,
    cut: str,
) -> tuple[list[Text], list[Text]]:
    """Return the texts before, between and after the visuals of the prefix, and the rest of every
    prompt.
    """
    if cut not in ("answer", "video"):
        raise InputError(f"cut={cut!r} must be 'answer' or 'video'")
    if cut == "answer" and len(questions) != 1:
        raise InputError(f"cut='answer' is for one question, not {len(questions)}")
    prompts = [_around(question, visuals, template, opening) for question in questions]
    texts = [[_text(tokenizer, pieces) for pieces in prompt] for prompt in prompts]
    *before, beginning, _ = texts[0]
    if any(prompt[:-2] != before for prompt in texts):
        raise InputError(
            "questions of one row must put the images in the same places, after the same texts"
        )
    tails = [prompt[-1] for prompt in texts]
    if cut == "answer":
        shared = len(tails[0].ids) - 1
    else:
        # The last token of the opening may have swallowed the newline after it.
        shared = _common([beginning.ids, *(tail.ids for tail in tails)])
    return [*before, tails[0].split(shared)[0]], [tail.split(shared)[1] for tail in tails]


def _around(
    question: Question, visuals: int | Sequence[int], template: Template, opening: Opening
) -> list[Pieces]:
    if isinstance(visuals, int) or isinstance(opening, tuple):
        return template.around_visual(opening, *place_visual(question))
    check_placeholders(question, len(visuals))
    messages = conversation_of(question)
    for message in messages:
        check_answer(message.content)
    return template.around_images(messages, len(visuals))


def _common(sequences: list[list[int]]) -> int:
    """Return the length of the longest common beginning."""
    for i, ids in enumerate(zip(*sequences, strict=False)):
        if len(set(ids)) > 1:
            return i
    return min(map(len, sequences))
