"""Templates of LongVA, LLaVA-Video and LLaVA-OneVision: `qwen_1_5` of `llava/conversation.py`.

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n
    [visual tokens][opening]\\n[question]<|im_end|>\\n<|im_start|>assistant\\n[answer]<|im_end|>\\n

Every further message is written as these are; a system message takes the place of that sentence.
As in the originals the text before a placeholder, the text after it and the answer are tokenised
independently. `INFERENCE` has one newline before the question and labels nothing in the prompt.
`DPO_TRAINER` gives the sequences and labels of their preference trainer (`preprocess_qwen` in
`llava/train/train_dpo.py`): two newlines, and six labelled tokens of the template besides those of
the answer.
"""

from collections.abc import Sequence

from tpo_jax.errors import InputError
from tpo_jax.families.template import (
    IMAGE,
    ROLES,
    TIME_INSTRUCTIONS,
    Message,
    Opening,
    Pieces,
    Template,
    sentence_of,
    visual_at,
)

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."


class QwenTemplate(Template):
    """`qwen_1_5` as the inference code writes it."""

    def time_opening(self, mode: str, timestamps: Sequence[float], duration: float) -> str:
        """Return the sentence on frame times: `inline`, directly after the placeholder as in the
        original inference script; `newline`, on the next line as in the original demo and
        supervised training.
        """
        if mode not in TIME_INSTRUCTIONS:
            raise InputError(f"time_instruction={mode!r} must be one of {TIME_INSTRUCTIONS}")
        if mode == "none":
            return ""
        times = ",".join(f"{t:.2f}s" for t in timestamps)
        # The missing space after `{times}.` is the originals', and the models were trained with
        # it.
        text = (
            f"The video lasts for {duration:.2f} seconds, and {len(timestamps)} frames are "
            f"uniformly sampled from it. These frames are located at {times}.Please answer the "
            "following questions related to this video."
        )
        return text if mode == "inline" else "\n" + text


def _labelled(message: Message) -> list[tuple[str, bool]]:
    """Return a message as the trainer writes and labels it; its content is not a target."""
    content = [("\n", False), (message.content, False), (IM_END, True), ("\n", True)]
    return [(IM_START, True), (message.role, False), *content]


class TrainerTemplate(QwenTemplate):
    """`qwen_1_5` as the preference trainer writes and labels it; one visual only.

    Earlier messages are labelled like the prompt. The trainer has a function for them, too, but its
    labels of earlier answers are left out: the loss is on the last answer.
    """

    def around_visual(
        self, opening: Opening, conversation: Sequence[Message], at: int
    ) -> list[Pieces]:
        """Return the texts around one visual, with the trainer's labels."""
        head = [piece for m in self.with_system(conversation[:at]) for piece in _labelled(m)]
        head += [(IM_START, True), ("user", False), ("\n", False)]
        sentence = sentence_of(opening)
        tail = [("\n", False), (f"{sentence}\n{conversation[at].content}", False)]
        tail += [(IM_END, True), ("\n", True)]
        tail += [piece for m in conversation[at + 1 :] for piece in _labelled(m)]
        tail += [(IM_START, True), ("assistant", False), ("\n", False)]
        return [head, [("\n", False), (sentence, False)], tail]

    def around_images(self, conversation: Sequence[Message], images: int) -> list[Pieces]:
        """Return the texts around one image; the trainer supports one image per row only."""
        if images != 1:
            raise InputError(
                f"prompt_style=dpo_trainer is for one video or one image, not for {images} images"
            )
        at = visual_at(conversation)
        content = conversation[at].content.replace(IMAGE, "").strip()
        messages = (*conversation[:at], Message("user", content), *conversation[at + 1 :])
        return self.around_visual("", messages, at)


INFERENCE = QwenTemplate(
    around={role: (f"{IM_START}{role}\n", f"{IM_END}\n") for role in ROLES},
    end=((IM_END, True), ("\n", True)),
    system=SYSTEM,
    markers=(IM_START, IM_END),
    tokens=(IM_START, IM_END, "\n"),
    stop=(IM_END, "<|endoftext|>"),
    token_ids={"<|endoftext|>": 151643, IM_START: 151644, IM_END: 151645},
)
DPO_TRAINER = TrainerTemplate(**vars(INFERENCE))
TEMPLATES = {"inference": INFERENCE, "dpo_trainer": DPO_TRAINER}
