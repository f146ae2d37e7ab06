"""How many visual tokens Qwen3-VL's videos have, and what prompts say on their times: no model."""

import dataclasses
import re
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tpo_jax import errors
from tpo_jax.curation.clients import Failure, Request, VideoView
from tpo_jax.curation.config import Role
from tpo_jax.curation.local_client import LocalClient
from tpo_jax.curation.units import Unit
from tpo_jax.curation.views import View
from tpo_jax.data.clips import Clip
from tpo_jax.data.processor import Processor, used_tokens
from tpo_jax.errors import InputError
from tpo_jax.families import preset
from tpo_jax.families.qwen_vl.config import pairs
from tpo_jax.families.qwen_vl.processing import preprocess, video_size
from tpo_jax.families.qwen_vl.template import QWEN3
from tpo_jax.planning.plan import batch_shape
from tpo_jax.training import experiment
from tpo_jax.worlds.tokenizer import train_tokenizer

FULL, TINY = preset("qwen3_vl_8b"), preset("tiny_qwen3_vl")
OLDER = preset("qwen2_5_vl_7b")
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer([QUESTION, " seconds>"] * 9, 300)
    made.add_special_tokens(list(QWEN3.markers[2:]))
    return made


def clip_of(config, frames, height, width, known=True):
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    times = [i / 2 for i in range(frames)] if known else ()
    return Clip(preprocess(pixels, config), times, frames / 2)


@settings(max_examples=200, deadline=None)
@given(
    frames=st.integers(1, 900),
    more=st.integers(0, 200),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    most=st.integers(12, 20),
    cap=st.sampled_from([1, 4, 30, 768]),
)
def test_no_video_has_more_tokens_than_are_counted(frames, more, height, width, most, cap):
    budget = (4096, 4**most // 64)
    config = dataclasses.replace(FULL, video_pixels=budget, frame_tokens=cap)
    check_tokens(config, frames, more, height, width)


@settings(max_examples=200, deadline=None)
@given(
    frames=st.integers(1, 900),
    more=st.integers(0, 200),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    total=st.sampled_from([100, 5000, 128000]),
    cap=st.sampled_from([1, 4, 30, 768]),
)
def test_no_video_of_qwen2_5_has_more_tokens_than_are_counted(
    frames, more, height, width, total, cap
):
    config = dataclasses.replace(OLDER, video_tokens=total, frame_tokens=cap)
    check_tokens(config, frames, more, height, width)


def check_tokens(config, frames, more, height, width):
    most_tokens = config.pair_tokens(frames)
    assert most_tokens <= config.frame_tokens
    assert pairs(frames) * most_tokens <= config.visual_tokens(frames + more)
    try:
        size = video_size(config, frames, height, width)
    except InputError as error:
        assert "crop the longer side" in str(error) or "times the other" in str(error)
        return
    assert size[0] * size[1] <= most_tokens * config.tower.token_side**2


@pytest.mark.parametrize("frames", [2, 5, 32, 64, 65, 768])
@pytest.mark.parametrize("config", [FULL, OLDER], ids=["qwen3_vl", "qwen2_5_vl"])
def test_a_large_video_has_the_tokens_that_are_counted(config, frames):
    """The bound of a pair is reached by some shape."""
    sizes = [video_size(config, frames, 2160, width) for width in range(1080, 4320, 40)]
    tokens = max(height * width for height, width in sizes) // config.tower.token_side**2
    assert 0.96 * config.pair_tokens(frames) <= tokens <= config.pair_tokens(frames)


def test_the_published_number_of_frames_fits_the_context():
    config = experiment.base()
    config.model.preset, config.data.sampling = "qwen3_vl_8b", "two_fps"
    config.data.num_frames = 768
    shape = batch_shape(experiment.read(config), FULL)
    visual, text = 17 * 768, 384 * FULL.frame_text  # 33 frames are the most at 768 a pair
    assert visual + text < shape.prefix < visual + text + 1024


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 70), (32, 16), (17, 40)])
def test_the_reported_number_of_frames_fits(height, width, tokenizer):
    """Fewer frames of a large video are larger; those of a small one are not, and it is told
    exactly.
    """
    config = dataclasses.replace(TINY, frame_tokens=16, video_pixels=(256, 102400))
    short = Processor(dataclasses.replace(config, max_length=150), tokenizer)
    with pytest.raises(InputError, match="frames would fit") as error:
        short.prompts([QUESTION], clip_of(config, 40, height, width))
    fit = int(re.search(r"(\d+) frames would fit", str(error.value))[1])

    def used(frames):
        clip = clip_of(config, frames, height, width)
        clip = clip._replace(times=np.linspace(0, 19.5, frames).tolist())
        return used_tokens(Processor(config, tokenizer).prompts([QUESTION], clip))

    assert used(fit) < 150 and fit >= 5
    assert used(fit + 1) >= 150 or height * width > 40 * 17


def test_frames_without_times_are_at_24_a_second(tokenizer, capsys):
    errors.note.cache_clear()
    for frames, last in ((8, "0.3"), (7, "0.2")):  # the last of seven is its own pair: 6 / 24
        _, stamps = QWEN3.tokens_and_opening(
            TINY, clip_of(TINY, frames, 16, 16).frames, (), 0.0, "none"
        )
        assert stamps == tuple(f"<{t} seconds>" for t in ("0.0", "0.1", "0.2", last))
    assert (
        "without times: the model is told that they are at 24 a second" in capsys.readouterr().err
    )
    short = Processor(dataclasses.replace(TINY, max_length=200), tokenizer)
    with pytest.raises(InputError) as error:
        short.prompts([QUESTION], clip_of(TINY, 61, 32, 32, known=False))
    fit = int(re.search(r"(\d+) frames would fit", str(error.value))[1])
    row = short.prompts([QUESTION], clip_of(TINY, fit, 32, 32, known=False))
    assert used_tokens(row) < 200
    with pytest.raises(InputError, match=f"{fit} frames would fit"):
        short.prompts([QUESTION], clip_of(TINY, fit + 1, 32, 32, known=False))


def folder_of(folder, width, height, count=9):
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (width, height), (i, i, i)).save(folder / f"{i:03}.png")
    return folder


def test_curation_tells_the_times_and_survives_an_odd_video(tokenizer, tmp_path):
    prompts = {}

    def answer(visuals, rows, seeds, shape):
        for visual, row in zip(visuals, rows, strict=True):
            ids = np.where(row.visual_index < 0, row.prefix_ids, 0)[row.prefix_mask]
            text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            prompts[len(visual)] = re.findall("<([0-9.]+) seconds>", text)
        return [["It rains."]] * len(rows)

    model = types.SimpleNamespace(
        processor=Processor(TINY, tokenizer),
        generator=lambda decoding: types.SimpleNamespace(batch_rows=2, answer=answer),
    )
    good, odd = folder_of(tmp_path / "good", 32, 16), folder_of(tmp_path / "odd", 4000, 10)
    asked = [
        Request(name, QUESTION, VideoView(path, view), 0, Unit(id="", video=""))
        for name, path, view in (
            ("odd", odd, View("full", 4)),
            ("full", good, View("full", 4)),
            ("reverse", good, View("reverse:2", 6)),
        )
    ]
    replies = {r.id: reply for r, reply in LocalClient(model, Role(), 2).replies(asked)}
    assert isinstance(replies["odd"], Failure) and "times the other" in replies["odd"].reason
    assert replies["full"] == replies["reverse"] == "It rains."
    for request in asked[1:]:
        shown = np.sort(request.clip.view.indices(np.arange(9) / 2)) / 2  # two images a second
        means = shown.reshape(-1, 2).mean(1)
        assert prompts[len(means)] == [f"{mean:.1f}" for mean in means] and means[-1] > 2


# Heights and widths of common videos: 16:9, 4:3, 9:16, 1:1 and 21:9.
SHAPES = [(1080, 1920), (720, 1280), (1440, 1080), (480, 640), (1920, 1080), (1280, 720)]
SHAPES += [(1080, 1080), (720, 720), (1080, 2560), (816, 1920)]


@pytest.mark.parametrize("config", [FULL, OLDER], ids=["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(("cap", "frames"), [(64, 64), (128, 64), (256, 64), (384, 64), (768, 32)])
def test_real_shapes_are_padded_by_at_most_15_percent(config, cap, frames):
    config = dataclasses.replace(config, frame_tokens=cap)
    sizes = [video_size(config, frames, *shape) for shape in SHAPES]
    used = np.prod(sizes, axis=1).sum() / config.tower.token_side**2
    assert used >= 0.85 * cap * len(SHAPES)
