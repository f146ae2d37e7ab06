"""What a run says on padding: small videos in a large budget of visual tokens, and others."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.families.qwen_vl.conftest import PRESETS
from tpo_jax import errors, families
from tpo_jax.data.collate import collate
from tpo_jax.data.padding import MOST, VIDEOS, PaddingCheck, advice
from tpo_jax.data.processor import Processor
from tpo_jax.families.qwen_vl.template import QWEN3
from tpo_jax.inference import generator, scoring
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import place
from tpo_jax.models.batch import BatchShape
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.training.feed import Feed
from tpo_jax.worlds.tokenizer import train_tokenizer

QUESTION = "What happens?"
SAID = "50% of the visual tokens are padding: .* first 16 videos have 6 to 6 of frame_tokens=12; "
SAID += "a checkpoint converted with --frame_tokens=6 leaves 0%, at the same sizes"


@pytest.fixture(autouse=True)
def said(capsys):
    """Return a function that returns the notes since its last call."""
    errors.note.cache_clear()
    return lambda: capsys.readouterr().err


@pytest.fixture(scope="module", params=PRESETS)
def processor(request):
    """Of frames of 32x48 pixels, six visual tokens of at most twelve."""
    made = train_tokenizer([QUESTION, " seconds>"] * 9, 300)
    made.add_special_tokens(list(QWEN3.markers[2:]))
    config = families.preset(PRESETS[request.param])
    config = dataclasses.replace(config, frame_tokens=12, video_pixels=(256, 65536))
    return Processor(config, made)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        (folder / "small").mkdir(exist_ok=True)
        Image.new("RGB", (48, 32), (i, i, i)).save(folder / "small" / f"{i}.png")
    return folder


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 768)), min_size=1, max_size=20),
    st.integers(0, 700),
)
def test_what_is_advised_leaves_what_it_says(videos, more):
    sizes = [tokens for _, tokens in videos]
    most = max(sizes) + more

    def padded(cap):
        entries = [cap - min(tokens, cap) for pairs, tokens in videos for _ in range(pairs)]
        return sum(entries) / cap / len(entries)

    text = advice(videos, most)
    assert (text == "") == (padded(most) <= MOST)
    found = re.findall(r"--frame_tokens=(\d+) leaves (\d+)%, (at|larger)", text)
    for cap, percent, how in found:
        assert abs(padded(int(cap)) * 100 - int(percent)) <= 0.5 + 1e-9
        assert int(cap) == max(sizes) if how == "at" else padded(int(cap)) <= MOST
    assert [how for *_, how in found].count("at") == (bool(text) and most > max(sizes))
    assert not text or padded(int(found[-1][0])) <= MOST


def batch_of(processor, videos, rows):
    clip = processor.video(videos / "small", 4)
    row = processor.prompts([QUESTION], clip)
    shape = BatchShape(
        rows=rows + 1,  # one of them is empty
        prefix=row.prefix_ids.size,
        questions=1,
        answers=1,
        response=row.input_ids.shape[-1],
        frames=len(clip.frames) + 1,
        frame_shape=processor.config.frame_shape,
    )
    return collate(processor.config, [row] * rows, [clip.frames] * rows, shape)


def test_training_says_it_once(processor, videos, said):
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1])
    feed = Feed(mesh, [], padding=PaddingCheck(processor.config))
    feed.put(batch_of(processor, videos, VIDEOS - 1))
    assert not said()
    feed.put(batch_of(processor, videos, 1))
    assert re.search(SAID, said())
    feed.put(batch_of(processor, videos, VIDEOS))
    assert not said()


def test_scores_and_answers_say_it(processor, videos, said, monkeypatch):
    def stop(*_, **__):
        raise StopIteration

    params = {"decoder": {"norm": {"scale": np.zeros(1, np.float32)}}}
    model = place(processor, params)
    monkeypatch.setattr(scoring, "score_batch", lambda config, params, batch: np.zeros((8, 2)))
    monkeypatch.setattr(generator, "prefill", stop)
    pair = {"video": "small", "prompt": QUESTION, "chosen": "It rains.", "rejected": "Nothing."}
    model.score([pair] * VIDEOS, videos=videos, num_frames=4)
    assert re.search(SAID, said())

    errors.note.cache_clear()
    model = place(processor, params)
    clip = processor.video(videos / "small", 4)
    rows = [processor.prompts([QUESTION], clip)] * VIDEOS
    with pytest.raises(StopIteration):
        model.generator(Decoding(4, batch_rows=VIDEOS)).answer([clip.frames] * VIDEOS, rows)
    assert re.search(SAID, said())


def test_frames_of_one_size_say_nothing(said):
    config = families.preset("tiny_longva")
    index = np.arange(VIDEOS * 4).reshape(VIDEOS, 4)
    PaddingCheck(config).look(dataclasses.replace(EMPTY, visual_index=index))
    assert not said()


EMPTY = BatchShape(
    rows=1, prefix=1, questions=1, answers=1, response=1, frames=1, frame_shape=(1,)
).empty()
