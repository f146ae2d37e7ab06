"""The host side of a model: what the context holds, frames that are missing, images of any kind."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from tpo_jax import families
from tpo_jax.data.clips import Clip
from tpo_jax.data.processor import NO_FRAMES, Processor, used_tokens
from tpo_jax.errors import InputError
from tpo_jax.worlds.tokenizer import train_tokenizer

QUESTIONS = ["What happens?", "Who is there?"]
PRESETS = ["tiny_longva", "tiny_llava_video"]  # no newline token, one behind every row of a frame


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(QUESTIONS, vocab_size=270)


def clip_of(num_frames: int, known: bool = True) -> Clip:
    """Frames of any content, two a second."""
    frames = np.ones((num_frames, 4, 4, 3), np.uint8)
    times = [i / 2 for i in range(num_frames)] if known else []
    return Clip(frames, times, num_frames / 2)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("time_instruction", ["none", "newline"])
@pytest.mark.parametrize("kind", ["prompts", "scored"])
def test_the_reported_number_of_frames_fits_and_one_more_does_not(
    name, time_instruction, kind, tokenizer
) -> None:
    config = dataclasses.replace(families.preset(name), max_length=700)
    processor = Processor(config, tokenizer, time_instruction)

    def build(clip: Clip):
        if kind == "prompts":
            return processor.prompts(QUESTIONS, clip)
        return processor.scored(QUESTIONS[0], ["It rains.", "Nothing"], clip)

    with pytest.raises(InputError, match=r"model's context (of|holds) 700") as error:
        build(clip_of(800))
    fit = int(re.search(r"(\d+) frames would fit", str(error.value))[1])
    # Fewer frames span the same time, so their times are not those of a shorter clip.
    evenly = [np.linspace(0, 399.5, n).tolist() for n in (fit, fit + 1)]
    fits, exceeds = (Clip(NO_FRAMES, times, 400.0) for times in evenly)
    assert used_tokens(build(fits)) <= 700 - (kind == "prompts")
    with pytest.raises(InputError, match=f"{fit} frames would fit"):
        build(exceeds)


def test_frames_of_unknown_times_have_no_sentence_on_them(tokenizer) -> None:
    config = families.preset("tiny_longva")
    silent, timed = (Processor(config, tokenizer, mode) for mode in ("none", "inline"))
    rows = [
        silent.prompts(QUESTIONS, clip_of(4)),
        timed.prompts(QUESTIONS, clip_of(4, known=False)),
    ]
    for name, values in rows[0].arrays().items():
        np.testing.assert_array_equal(values, rows[1].arrays()[name])
    assert used_tokens(timed.prompts(QUESTIONS, clip_of(4))) > used_tokens(rows[0])
    short = Processor(dataclasses.replace(config, max_length=90), tokenizer, "inline")
    with pytest.raises(InputError, match="[1-9][0-9]* frames would fit"):
        short.prompts(QUESTIONS, clip_of(200, known=False))


def test_images_of_files_and_of_memory_are_the_same(tokenizer, tmp_path) -> None:
    processor = Processor(families.preset("tiny_llava_video"), tokenizer)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    from_file = processor.pictures([tmp_path / "a.png"])
    in_memory = processor.pictures([Image.fromarray(pixels)])
    for one, other in zip(from_file, in_memory, strict=True):
        np.testing.assert_array_equal(one, other)
    many = processor.pictures([Image.fromarray(pixels)] * 300)
    with pytest.raises(InputError, match="use fewer or smaller images"):
        processor.prompts(QUESTIONS, many)


@pytest.mark.parametrize("setting", ["time_instruction", "prompt_style"])
def test_unknown_settings_are_refused(setting, tokenizer) -> None:
    with pytest.raises(InputError, match=f"{setting}='never' must be one of"):
        Processor(families.preset("tiny_longva"), tokenizer, **{setting: "never"})
