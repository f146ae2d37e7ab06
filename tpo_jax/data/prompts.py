"""Chat template and labels: texts become the prefix and the continuations of a row.

The template is `qwen_1_5` of the originals, rendered around one visual placeholder:

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n
    [visual tokens][opening]\\n[question]<|im_end|>\\n<|im_start|>assistant\\n[answer]<|im_end|>\\n

As in the originals the text before a placeholder, the text behind it and the answer are tokenised
independently. `inference`, the style of the originals' inference code, has one newline before the
question and labels nothing in the prompt. `dpo_trainer` gives the sequences and labels of their
DPO trainer (`reference/models.md` section 5.3): two newlines, and six labelled tokens of the
template besides those of the answer.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

from tpo_jax.data.rows import Row, Text, joined, pack
from tpo_jax.data.tokenizer import IM_END, IM_START
from tpo_jax.errors import InputError

TIME_INSTRUCTIONS = ("none", "inline", "newline")
STYLES = ("inference", "dpo_trainer")
IMAGE = "<image>"
PLACEHOLDERS = (IMAGE, "<video>")
SYSTEM = "You are a helpful assistant."
HEAD = f"{IM_START}system\n{SYSTEM}{IM_END}\n{IM_START}user\n"
TURN = f"{IM_END}\n{IM_START}assistant\n"


# Texts that are tokenised one by one, and whether their tokens are labelled.
_Pieces = list[tuple[str, bool]]


def strip_placeholder(question: str) -> str:
    """The question without its visual placeholder, which the template puts in front again.

    Raises:
        InputError: more than one `<image>` or `<video>`.
    """
    if (count := sum(question.count(p) for p in PLACEHOLDERS)) > 1:
        raise InputError(f"{count} <image> or <video> placeholders, one at most is allowed")
    for placeholder in PLACEHOLDERS:
        question = question.replace(placeholder, "")
    return question.strip()


def check_placeholders(question: str, images: int) -> None:
    """Raises `InputError` unless a question has an `<image>` for every image, or none."""
    for text in question.split(IMAGE):
        check_text(text)
    if (given := question.count(IMAGE)) not in (0, images):
        raise InputError(f"{given} <image> placeholders for {images} images")


def is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair is in it, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str) -> str:
    """Returns the text; `InputError` where it is no valid Unicode or holds a marker that only the
    template may set.
    """
    if not is_unicode(text):
        raise InputError("the text is no valid Unicode")
    for marker in (*PLACEHOLDERS, IM_START, IM_END):
        if marker in text:
            raise InputError(f"the text holds {marker}, which only the template may set")
    return text


def time_opening(mode: str, timestamps: Sequence[float], duration: float) -> str:
    """The time instruction as it stands between the placeholder and the question's newline.

    Args:
        mode: 'none'; 'inline', directly behind the placeholder as the original inference script; or
            'newline', on the next line as the original demo and supervised training.
        timestamps: of the frames, seconds.
        duration: of the video, seconds.
    """
    if mode not in TIME_INSTRUCTIONS:
        raise InputError(f"time_instruction={mode!r} must be one of {TIME_INSTRUCTIONS}")
    if mode == "none":
        return ""
    times = ",".join(f"{t:.2f}s" for t in timestamps)
    # The missing space behind `{times}.` is the originals', and the models were trained with it.
    text = (
        f"The video lasts for {duration:.2f} seconds, and {len(timestamps)} frames are uniformly "
        f"sampled from it. These frames are located at {times}.Please answer the following "
        "questions related to this video."
    )
    return text if mode == "inline" else "\n" + text


def build_row(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    visuals: int | Sequence[int],
    *,
    opening: str = "",
    style: str = "inference",
    cut: str = "answer",
    max_prefix: int = 0,
    max_response: int = 0,
) -> Row:
    """Prefix and continuations of one video's, or some images', `Q` questions with `A` answers
    each.

    Args:
        tokenizer: of `data.tokenizer.load_tokenizer`.
        questions: `Q` questions. That on a video has no placeholder; that on images has as many
            `<image>` as there are images, or none: then they stand in front, one blank between
            them, as in lmms-eval.
        answers: `[Q][A]` texts; labelled are their tokens, `<|im_end|>` and the newline after it.
        visuals: visual tokens of the video, or a sequence of those of every image; `()` for text.
        opening: of `time_opening`.
        style: 'inference' or 'dpo_trainer', see above.
        cut: 'answer': before the last token of the prompt, for one question; 'video': behind the
            last visual token and the tokens of the opening, for any number of questions.
        max_prefix: P to pad to; 0: as long as it is.
        max_response: R to pad to; 0: as long as the longest.

    Raises:
        InputError: a marker in a text, placeholders that do not fit the images, or a row longer
            than P or R.
    """
    prefix, tails = _prompts(tokenizer, questions, visuals, opening, style, cut)
    end = _text(tokenizer, [(IM_END, True), ("\n", True)])
    continuations = []
    for tail, group in zip(tails, answers, strict=True):
        texts = [_text(tokenizer, [(check_text(answer), True)]) for answer in group]
        continuations.append([joined([tail, text, end]) for text in texts])
    return pack(
        prefix,
        continuations,
        [visuals] if isinstance(visuals, int) else visuals,
        labelled=True,
        max_prefix=max_prefix,
        max_response=max_response,
    )


def build_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    visuals: int | Sequence[int],
    *,
    opening: str = "",
    style: str = "inference",
    cut: str = "answer",
    max_prefix: int = 0,
    max_response: int = 0,
) -> Row:
    """`build_row` for generation: `A` is 1, no target, the input is the rest of the prompt.

    The hidden state of the last input token of a question predicts its first answer token.
    """
    prefix, tails = _prompts(tokenizer, questions, visuals, opening, style, cut)
    continuations = [[tail] for tail in tails]
    return pack(
        prefix,
        continuations,
        [visuals] if isinstance(visuals, int) else visuals,
        labelled=False,
        max_prefix=max_prefix,
        max_response=max_response,
    )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _text(tokenizer: Tokenizer, pieces: _Pieces) -> Text:
    parts = [(_encode(tokenizer, text), labelled) for text, labelled in pieces]
    return joined([Text(ids, [labelled] * len(ids)) for ids, labelled in parts])


def _around_one(opening: str, question: str, style: str) -> list[_Pieces]:
    """What stands before and behind one visual: the part that is common to all questions, then
    the question and the turn to the answer.
    """
    if style == "inference":
        return [[(HEAD, False)], [(opening, False)], [(f"{opening}\n{question}{TURN}", False)]]
    head = [(IM_START, True), ("system", False), ("\n", False), (SYSTEM, False)]
    head += [(IM_END, True), ("\n", True), (IM_START, True), ("user", False), ("\n", False)]
    tail = [("\n", False), (f"{opening}\n{question}", False), (IM_END, True), ("\n", True)]
    tail += [(IM_START, True), ("assistant", False), ("\n", False)]
    return [head, [("\n", False), (opening, False)], tail]


def _around_images(question: str, images: int) -> list[_Pieces]:
    """What stands before, between and behind the images, as `_around_one`."""
    check_placeholders(question, images)
    if images and IMAGE not in question:
        question = " ".join([IMAGE] * images) + "\n" + question
    chunks = (HEAD + question + TURN).split(IMAGE)
    shared = HEAD if not images else ""
    return [[(text, False)] for text in (*chunks[:-1], shared, chunks[-1])]


def _prompts(tokenizer, questions, visuals, opening, style, cut) -> tuple[list[Text], list[Text]]:
    """Texts before, between and behind the visuals of the prefix; the rest of every prompt."""
    if cut not in ("answer", "video"):
        raise InputError(f"cut={cut!r} must be 'answer' or 'video'")
    if style not in STYLES:
        raise InputError(f"prompt_style={style!r} must be one of {STYLES}")
    if cut == "answer" and len(questions) != 1:
        raise InputError(f"cut='answer' is for one question, not {len(questions)}")
    if isinstance(visuals, int):
        prompts = [_around_one(opening, check_text(q), style) for q in questions]
    elif style == "inference":
        prompts = [_around_images(question, len(visuals)) for question in questions]
    elif len(visuals) != 1:
        raise InputError(
            f"prompt_style=dpo_trainer is for one video or one image, not for {len(visuals)} images"
        )
    else:
        prompts = [_around_one("", check_text(strip_placeholder(q)), style) for q in questions]
    texts = [[_text(tokenizer, pieces) for pieces in prompt] for prompt in prompts]
    *before, beginning, _ = texts[0]
    if any(prompt[:-2] != before for prompt in texts):
        raise InputError("questions of one row must put the images in the same places")
    tails = [prompt[-1] for prompt in texts]
    if cut == "answer":
        shared = len(tails[0].ids) - 1
    else:
        # The last token of the opening may have swallowed the newline behind it.
        shared = _common([beginning.ids, *(tail.ids for tail in tails)])
    return [*before, tails[0].split(shared)[0]], [tail.split(shared)[1] for tail in tails]


def _common(sequences: list[list[int]]) -> int:
    """Length of the longest common beginning."""
    for i, ids in enumerate(zip(*sequences, strict=False)):
        if len(set(ids)) > 1:
            return i
    return min(map(len, sequences))
