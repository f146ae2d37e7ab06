"""The host side of a model: videos and images to pixels, texts to rows of tokens."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from tpo_jax import families
from tpo_jax.data import images, prompts
from tpo_jax.data.clips import Clip
from tpo_jax.data.folders import video_at
from tpo_jax.data.rows import Row, Size
from tpo_jax.errors import InputError
from tpo_jax.families.template import TIME_INSTRUCTIONS, Opening, Question
from tpo_jax.models.config import ModelConfig, most_frames
from tpo_jax.models.pictures import Pictures
from tpo_jax.video import sampling
from tpo_jax.video.decode import Source, VideoError

Visual = Clip | Pictures
NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)


def used_tokens(row: Row) -> int:
    """Count the tokens of a row's prefix and of its longest continuation, without padding."""
    return int(row.prefix_mask.sum() + row.input_mask.sum(-1).max())


class Processor:
    """What a model is shown, made from files and texts.

    A visual is a `Clip` with pixels in the model's size, or `Pictures`: some images, or none for a
    prompt of text alone. A clip whose `times` are empty has frames without known times; its prompt
    says nothing about them.

        processor = tpo_jax.load_processor("checkpoints/longva-tpo")
        clip = processor.video("cooking.mp4", num_frames=32)
        row = processor.prompts(["What is cut first?"], clip)

    Args:
        time_instruction: sentence on the frames' times, one of
            `families.template.TIME_INSTRUCTIONS`; by default what the checkpoint's `config.json`
            asks for.
        prompt_style: one of `families.template.STYLES`.

    Raises:
        InputError: an unknown time instruction or prompt style.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        time_instruction: str | None = None,
        prompt_style: str = "inference",
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.time_instruction = time_instruction or config.time_instruction
        self.prompt_style = prompt_style
        templates = families.of(config).templates
        for name, known in (
            ("time_instruction", TIME_INSTRUCTIONS),
            ("prompt_style", tuple(templates)),
        ):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name}={value!r} must be one of {known}")
        self.template = templates[prompt_style]

    def video(self, source: Source, num_frames: int = 32, rule: str = "uniform") -> Clip:
        """Sample, decode and resize frames of a video, whose times and duration are in seconds.

        Args:
            source: a video file, the bytes of one, a directory of frames, or a path into a store
                (`data/folders.py`).
            num_frames: frames of the video, at most; see `rule`.
            rule: which frames are sampled, one of `video.sampling.RULES`.

        Raises:
            InputError: the video cannot be decoded.
        """
        try:
            if isinstance(source, str | os.PathLike):
                source = video_at(source)
            frames, times, duration = sampling.read_frames(source, rule, num_frames)
        except VideoError as error:
            raise InputError(str(error)) from error
        rate = sampling.rate_of(times, duration)
        return Clip(self.resize(frames, rate=rate), times.tolist(), duration)

    def resize(self, frames: np.ndarray, pad: bool = False, rate: float = 0.0) -> np.ndarray:
        """Resize frames uint8 `[n, height, width, 3]` to those of a batch, uint8
        `[config.batch_frames(n), *config.frame_shape]`.

        Args:
            pad: widen the frames to squares first, in the mean colour of the vision tower.
            rate: from `sampling.rate_of`, for models whose frames hold their times; 0: unknown.
        """
        return families.of(self.config).preprocess(frames, self.config, pad, rate)

    def pictures(self, pictures: Sequence[str | Path | Image.Image]) -> Pictures:
        """Cut image files or PIL images into views; no image at all for a prompt of text alone.

        Raises:
            InputError: a file that is not a readable image, or an image the model cannot take.
        """
        return images.read_pictures(pictures, self.config)

    def without_placeholder(self, question: str) -> str:
        """Return a user's question on a video without the `<image>` or `<video>` it may hold.

        Raises:
            InputError: more than one placeholder.
        """
        return prompts.strip_placeholder(question)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a piece of a prompt, without added special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @property
    def head(self) -> list[int]:
        """Return the token ids of the template before the visual."""
        return self.encode(self.template.head)

    @property
    def turn(self) -> list[int]:
        """Return the token ids of the template between question and answer."""
        return self.encode(self.template.turn)

    def question_tokens(self, question: str) -> int:
        """Return about how many tokens a question and the turn after it take."""
        return len(self.encode(f"\n{question}{self.template.turn}"))

    def prompts(self, questions: Sequence[Question], visual: Visual) -> Row:
        """Build the row of `Q` questions on one visual, for generation: `A` is 1, no targets.

        A question is a text, or a conversation: messages, the last one the user's. A text on a
        video holds no placeholder; in a conversation the video opens the user's message that holds
        one, else the last. A question on images holds an `<image>` for each of them, or none, and
        then the images open its last message.

        Raises:
            InputError: a text the template cannot hold, or a prompt that leaves no space for an
                answer in the model's context; the message says how many frames would fit.
        """

        def build(visual: Visual) -> Row:
            tokens, opening = self._tokens_and_opening(visual)
            return prompts.build_prompts(
                self.tokenizer,
                questions,
                tokens,
                opening=opening,
                template=self.template,
                cut="video",
            )

        row = build(visual)
        used, context = used_tokens(row), self.config.max_length
        if used >= context:
            visible = int(row.visual_index.max()) + 1
            advice = self._advice(visual, lambda visual: used_tokens(build(visual)) < context)
            raise InputError(
                f"the prompt takes {used} tokens, {visible} of them visual, and leaves no space "
                f"for an answer in the model's context of {context}; {advice}"
            )
        return row

    def answers(
        self,
        questions: Sequence[Question],
        answers: Sequence[Sequence[str]],
        visual: Visual,
        *,
        cut: str = "answer",
        size: Size = Size(),  # noqa: B008, a constant
    ) -> Row:
        """Build the row of `Q` questions with `A` answers each, for training and scoring.

        The model's context is not checked, see `scored`.

        Args:
            answers: `[Q][A]` texts.
            cut: 'answer' or 'video', where the prefix ends; see `prompts.build_row`.
            size: P and R to pad to.

        Raises:
            PrefixError: a prefix longer than P.
            InputError: a text the template cannot hold, or an answer longer than R.
        """
        tokens, opening = self._tokens_and_opening(visual)
        return prompts.build_row(
            self.tokenizer,
            questions,
            answers,
            tokens,
            opening=opening,
            template=self.template,
            cut=cut,
            size=size,
        )

    def scored(self, question: Question, answers: Sequence[str], visual: Visual) -> Row:
        """Build the row of one question with `A` answers that the model's context holds.

        Raises:
            InputError: as `answers`, or a row longer than the model's context; the message says
                how many frames would fit.
        """

        def build(visual: Visual) -> Row:
            return self.answers([question], [answers], visual)

        row = build(visual)
        used, context = used_tokens(row), self.config.max_length
        if used > context:
            advice = self._advice(visual, lambda visual: used_tokens(build(visual)) <= context)
            raise InputError(
                f"prompt and answer take {used} tokens, the model's context holds {context}; "
                + advice
            )
        return row

    def most_frames(self, clip: Clip, fits: Callable[[Clip], bool]) -> int:
        """Return the most frames, fewer than the clip's, with which `fits` holds; 0: not even one.

        Fewer frames span the same time evenly. `fits` gets clips with their times and all pixels
        or, where the times are unknown, with the first pixels.
        """
        if len(clip.times):
            return most_frames(lambda times: fits(clip._replace(times=times)), clip.times)
        size = self.config.batch_frames
        count = len(clip.frames)
        while size(count + 1) <= len(clip.frames):  # a frame of a batch may be several of the video
            count += 1

        def first(times: Sequence[float]) -> Clip:
            return clip._replace(frames=clip.frames[: size(len(times))])

        return most_frames(lambda times: fits(first(times)), [0.0] * count)

    def _tokens_and_opening(self, visual: Visual) -> tuple[int | Sequence[int], Opening]:
        """Return the visual tokens of a video, or of every image, and what is said on its times."""
        if isinstance(visual, Pictures):
            return visual.tokens, ""
        return self.template.tokens_and_opening(self.config, *visual, self.time_instruction)

    def _advice(self, visual: Visual, fits: Callable[[Visual], bool]) -> str:
        if isinstance(visual, Pictures):
            return "use fewer or smaller images" if visual.tokens else "shorten the text"
        fitting = self.most_frames(visual, fits)
        return f"{fitting} frames would fit" if fitting else "no frame would fit: shorten the text"
