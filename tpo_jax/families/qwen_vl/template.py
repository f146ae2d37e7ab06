"""The chat templates of Qwen3-VL and Qwen2.5-VL.

    <|im_start|>user\\n<0.3 seconds><|vision_start|>[visual tokens]<|vision_end|><1.3 seconds>…
    [question]<|im_end|>\\n<|im_start|>assistant\\n[answer]<|im_end|>\\n

Every pair of frames stands after the mean of its two times (`replace_video_token` in
`processing_qwen3_vl.py` of `transformers`). There is no system message unless one is given.
Qwen2.5-VL has one, and all frames of a video between one pair of markers: their times are in the
positions of visual tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tpo_jax.errors import InputError, note
from tpo_jax.families.qwen_vl.config import MERGE, PAIR, QwenVLConfig, no_sentence, pairs
from tpo_jax.families.qwen_vl.processing import UNKNOWN_RATE, frames_in, grids
from tpo_jax.families.template import IMAGE, ROLES, Message, Opening, Pieces, Template

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
START, END = "<|vision_start|>", "<|vision_end|>"


def _tokens(config: QwenVLConfig, frames: np.ndarray, num_frames: int) -> int:
    """Return the number of visual tokens of each pair in a video of `num_frames` frames, given the
    pixels of that video or of one with more of the same frames; without pixels, the maximum.
    """
    most = config.pair_tokens(num_frames)
    if not len(frames):
        return most
    rows, columns = (grids(frames[:1])[0] // MERGE).tolist()
    given = config.pair_tokens(PAIR * len(frames))
    # Fewer frames are larger, unless these have the video's own size: frames that were shrunk come
    # within a row and a column of filling the budget.
    same = len(frames) == pairs(num_frames) or most == given or (rows + 1) * (columns + 1) <= given
    return rows * columns if same else most


class QwenVLTemplate(Template):
    """Vision markers around every image and around a video, whose times are in positions."""

    def tokens_and_opening(
        self, config: Any, frames: np.ndarray, times: Sequence[float], duration: float, mode: str
    ) -> tuple[int | Sequence[int], Opening]:
        """Return the number of visual tokens of every pair of frames, and the text before each;
        see `Template`.
        """
        if mode != "none":
            raise InputError(no_sentence(mode))
        if not len(times):
            note(
                "frames without times: the model is told that they are at "
                f"{UNKNOWN_RATE:g} a second, as by the published processor"
            )
            times = [i / UNKNOWN_RATE for i in range(frames_in(frames))]
        count = pairs(len(times))
        return [_tokens(config, frames, len(times))] * count, self.texts_before(times)

    def texts_before(self, times: Sequence[float]) -> tuple[str, ...]:
        """Return the text before each pair of the frames at these times, seconds: empty."""
        return ("",) * pairs(len(times))

    def around_visual(
        self, opening: Opening, conversation: Sequence[Message], at: int
    ) -> list[Pieces]:
        """Return the texts around the pairs of frames of a video; see `Template`."""
        if isinstance(opening, str):
            raise TypeError(f"this template needs a text before each pair of frames: {opening!r}")
        before, after = self.with_system(conversation[:at]), conversation[at + 1 :]
        begin, end = self.around["user"]
        heads = [f"{END}{stamp}{START}" if stamp else "" for stamp in opening]
        heads[0] = f"{self.written(before)}{begin}{opening[0]}{START}"
        behind = f"{END}{conversation[at].content}{end}{self.written(after)}"
        behind += self.around["assistant"][0]
        return [[(text, False)] for text in (*heads, END, behind)]

    def around_images(self, conversation: Sequence[Message], images: int) -> list[Pieces]:
        """Return the texts around images, vision markers included; see `Template`."""
        *others, last = conversation
        asked = "".join(m.content for m in conversation if m.role == "user")
        if IMAGE not in asked:
            last = Message(last.role, IMAGE * images + last.content)
        marked = [
            Message(role, content.replace(IMAGE, f"{START}{IMAGE}{END}"))
            if role == "user"
            else Message(role, content)
            for role, content in (*others, last)
        ]
        return super().around_images(marked, images)


class Qwen3VLTemplate(QwenVLTemplate):
    """A timestamp before each pair of frames, vision markers around it."""

    def texts_before(self, times: Sequence[float]) -> tuple[str, ...]:
        """Return the timestamps of pairs of the frames at these times, seconds."""
        count, last = pairs(len(times)), len(times) - 1
        means = [(times[PAIR * i] + times[min(PAIR * i + 1, last)]) / 2 for i in range(count)]
        return tuple(f"<{mean:.1f} seconds>" for mean in means)


QWEN3 = Qwen3VLTemplate(
    around={role: (f"{IM_START}{role}\n", f"{IM_END}\n") for role in ROLES},
    end=((IM_END, True), ("\n", True)),
    system="",
    markers=(IM_START, IM_END, START, END, "<|image_pad|>", "<|video_pad|>"),
    tokens=(IM_START, IM_END, START, END, "\n"),
    stop=(IM_END, "<|endoftext|>"),
    token_ids={
        "<|endoftext|>": 151643,
        IM_START: 151644,
        IM_END: 151645,
        START: 151652,
        END: 151653,
    },
)
QWEN2_5 = QwenVLTemplate(
    **{**vars(QWEN3), "system": "You are a helpful assistant."},
)
