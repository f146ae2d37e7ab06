"""Chat template and labels: texts become the prefix and the continuations of a row.

The template is `qwen_1_5` of the originals, rendered around one visual placeholder:

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n
    [visual tokens][opening]\\n[question]<|im_end|>\\n<|im_start|>assistant\\n[answer]<|im_end|>\\n

As in the originals the text before the placeholder, the text behind it and the answer are
tokenised independently. This is their inference style: one newline before the question, and no
label in the prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from tpo_jax.data.tokenizer import IM_END, IM_START
from tpo_jax.errors import InputError

TIME_INSTRUCTIONS = ("none", "inline", "newline")
PLACEHOLDERS = ("<image>", "<video>")
HEAD = f"{IM_START}system\nYou are a helpful assistant.{IM_END}\n{IM_START}user\n"
TURN = f"{IM_END}\n{IM_START}assistant\n"


class Row(NamedTuple):
    """The texts of one video; keys, dtypes and shapes of `docs/architecture.md`, without `B`."""

    prefix_ids: np.ndarray  # int32 [P]
    prefix_mask: np.ndarray  # bool [P]
    visual_index: np.ndarray  # int32 [P]
    input_ids: np.ndarray  # int32 [Q, A, R]
    input_mask: np.ndarray  # bool [Q, A, R]
    target_ids: np.ndarray  # int32 [Q, A, R]
    target_mask: np.ndarray  # bool [Q, A, R]


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


def check_text(text: str) -> str:
    """Returns the text; `InputError` where it holds a marker that only the template may set."""
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
    num_visual_tokens: int,
    *,
    opening: str = "",
    cut: str = "answer",
    num_frames: int = 0,
    max_prefix: int = 0,
    max_response: int = 0,
) -> Row:
    """Prefix and continuations of one video's `Q` questions with `A` answers each.

    Args:
        tokenizer: of `data.tokenizer.load_tokenizer`.
        questions: `Q` questions without placeholder.
        answers: `[Q][A]` texts; labelled are their tokens, `<|im_end|>` and the newline after it.
        num_visual_tokens: visual tokens of the video.
        opening: of `time_opening`.
        cut: 'answer': before the last token of the prompt, for one question; 'video': behind the
            video and the tokens of the opening, for any number of questions.
        num_frames: of the video; only for the error that says how many would fit.
        max_prefix: P to pad to; 0: as long as it is.
        max_response: R to pad to; 0: as long as the longest.

    Raises:
        InputError: a marker in a text, or a row longer than P or R.
    """
    prefix, tails = _prompts(tokenizer, questions, opening, cut)
    end = _encode(tokenizer, IM_END) + _encode(tokenizer, "\n")
    continuations = [
        [(tail, _encode(tokenizer, check_text(answer)) + end) for answer in group]
        for tail, group in zip(tails, answers, strict=True)
    ]
    return _row(prefix, continuations, num_visual_tokens, num_frames, max_prefix, max_response)


def build_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    num_visual_tokens: int,
    *,
    opening: str = "",
    cut: str = "answer",
    num_frames: int = 0,
    max_prefix: int = 0,
    max_response: int = 0,
) -> Row:
    """`build_row` for generation: `A` is 1, no target, the input is the rest of the prompt.

    The hidden state of the last input token of a question predicts its first answer token.
    """
    prefix, tails = _prompts(tokenizer, questions, opening, cut)
    continuations: list = [[(tail, [])] for tail in tails]
    return _row(prefix, continuations, num_visual_tokens, num_frames, max_prefix, max_response)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _prompts(tokenizer, questions, opening, cut):
    """(ids before the video, shared ids behind it), and the rest of every question's prompt."""
    if cut not in ("answer", "video"):
        raise InputError(f"cut={cut!r} must be 'answer' or 'video'")
    if cut == "answer" and len(questions) != 1:
        raise InputError(f"cut='answer' is for one question, not {len(questions)}")
    texts = [f"{opening}\n{check_text(question)}{TURN}" for question in questions]
    tails = [_encode(tokenizer, text) for text in texts]
    if cut == "answer":
        shared = len(tails[0]) - 1
    else:
        # The last token of the opening may have swallowed the newline behind it.
        shared = _common([_encode(tokenizer, opening), *tails])
    return (_encode(tokenizer, HEAD), tails[0][:shared]), [tail[shared:] for tail in tails]


def _common(sequences: list[list[int]]) -> int:
    """Length of the longest common beginning."""
    for i, ids in enumerate(zip(*sequences, strict=False)):
        if len(set(ids)) > 1:
            return i
    return min(map(len, sequences))


def _row(prefix, continuations, num_visual_tokens, num_frames, max_prefix, max_response) -> Row:
    head, shared = prefix
    text_tokens = len(head) + len(shared)
    used_prefix = text_tokens + num_visual_tokens
    used = max(len(t) + max(len(a) - 1, 0) for group in continuations for t, a in group)
    length, response = max_prefix or used_prefix, max_response or used
    if used_prefix > length:
        fit = ""
        if num_frames:
            frames = max(0, (length - text_tokens) // (num_visual_tokens // num_frames))
            fit = f"; {frames} frames would fit instead of {num_frames}"
        raise InputError(
            f"the prefix has {used_prefix} tokens ({num_visual_tokens} visual, {text_tokens} "
            f"text), more than the {length} there is room for{fit}"
        )
    if used > response:
        raise InputError(f"an answer takes {used} tokens, more than the {response} of max_response")

    video = slice(len(head), len(head) + num_visual_tokens)
    prefix_ids = np.zeros(length, np.int32)
    prefix_ids[: len(head)] = head
    prefix_ids[video.stop : used_prefix] = shared
    visual_index = np.full(length, -1, np.int32)
    visual_index[video] = np.arange(num_visual_tokens)

    shape = (len(continuations), len(continuations[0]), response)
    input_ids, target_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    input_mask, target_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for q, group in enumerate(continuations):
        for a, (tail, answer) in enumerate(group):
            ids = [*tail, *answer]
            if answer:
                target_ids[q, a, : len(ids) - 1] = ids[1:]
                target_mask[q, a, len(tail) - 1 : len(ids) - 1] = True
                ids = ids[:-1]
            input_ids[q, a, : len(ids)] = ids
            input_mask[q, a, : len(ids)] = True
    mask = np.arange(length) < used_prefix
    return Row(prefix_ids, mask, visual_index, input_ids, input_mask, target_ids, target_mask)
