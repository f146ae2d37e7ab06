"""A model of the server: what start-up compiles."""

import dataclasses
import types

import numpy as np
import pytest

from tests.serving.conftest import QUESTIONS
from tpo_jax import families
from tpo_jax.data.processor import Processor
from tpo_jax.errors import InputError
from tpo_jax.generation.decode import decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.serving.models import ServedModel, Source, Visual, load, warm_up
from tpo_jax.worlds.tokenizer import train_tokenizer


@pytest.mark.parametrize("preset", ["tiny_longva", "tiny_qwen3_vl", "tiny_qwen2_5_vl"])
@pytest.mark.parametrize("num_frames", [5, 128])
def test_the_warm_up_shows_what_a_video_of_as_many_frames_does(
    preset, num_frames, monkeypatch
) -> None:
    config = dataclasses.replace(families.preset(preset), max_length=32768)
    tokenizer = train_tokenizer(QUESTIONS, vocab_size=270)
    tokenizer.add_special_tokens(list(families.of(config).templates["inference"].markers))
    processor, shown = Processor(config, tokenizer), []

    def answers(self, visuals, rows, *others):
        shown.append((visuals[0].shape, int(rows[0].prefix_mask.sum())))
        return iter(())

    monkeypatch.setattr(ServedModel, "answers", answers)
    model = ServedModel("tiny", types.SimpleNamespace(processor=processor, config=config), 16)
    warm_up(model, num_frames)
    draws = np.random.default_rng(0)
    frames = processor.resize(draws.integers(0, 256, (num_frames, 360, 640, 3), np.uint8))
    times = tuple(np.linspace(0, 9.0, num_frames).tolist())
    visual = Visual(("real",), frames, times, 9.0)
    row = model.row(["What happens in the video?"], visual)
    assert shown[0] == (visual.shape, int(row.prefix_mask.sum()))


def test_a_text_far_beyond_the_context_is_refused_by_its_beginning() -> None:
    config = families.preset("tiny_longva")
    tokenizer, read = train_tokenizer(QUESTIONS, vocab_size=270), []
    tokenizer.add_special_tokens(list(families.of(config).templates["inference"].markers))

    class Counting(Processor):
        def encode(self, text):
            read.append(len(text))
            return super().encode(text)

    processor = Counting(config, tokenizer)
    model = ServedModel("tiny", types.SimpleNamespace(processor=processor, config=config), 16)
    nothing = Visual((), processor.pictures([]), (), 0.0)
    with pytest.raises(InputError, match=f"more than {2 * config.max_length} tokens"):
        model.row(["word " * 1_000_000], nothing)
    assert 0 < sum(read) < 100 * config.max_length


@pytest.mark.slow
def test_the_first_question_compiles_nothing(folder) -> None:
    model = load(Source(folder / "tpo"), "tpo", max_new_tokens=16, dtype="float32")
    warm_up(model, num_frames=4)
    compiled = [program._cache_size() for program in (prefill, decode)]
    frames = np.random.default_rng(0).integers(0, 256, (4, *model.config.frame_shape), np.uint8)
    limit = np.full((1, 1), 9, np.int32)
    for duration in (3.5, 250.0):
        times = tuple(np.linspace(0, duration, 4).tolist())
        visual = Visual((duration,), frames, times, duration)
        row = model.row([QUESTIONS[0]], visual)
        for sampling in (Sampling(), Sampling(0.7, top_k=5, top_p=0.9)):
            done = lambda: np.zeros((1, 1), bool)  # noqa: E731
            *_, [[answer]] = model.answers([visual], [row], [1], sampling, limit, done, [[("!",)]])
            assert answer.finished
    assert [program._cache_size() for program in (prefill, decode)] == compiled
