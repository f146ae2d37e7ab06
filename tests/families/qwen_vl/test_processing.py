"""Sizes, frame pairs, patches, prompts and positions, compared with the published processor."""

import dataclasses
import importlib
import importlib.util
import itertools
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.families import preset
from tpo_jax.families.qwen_vl import processing
from tpo_jax.families.qwen_vl.config import MERGE, QwenVLConfig
from tpo_jax.families.qwen_vl.processing import grids, image_size, picture, preprocess, video_size
from tpo_jax.video import sampling

torch = pytest.importorskip("torch", reason="compared with PyTorch")
pytest.importorskip("transformers", reason="compared with transformers")


def _published(name):
    """A module by its path: by their names, `transformers` gives those only with torchvision."""
    return importlib.import_module(f"transformers.models.{name}")


of_images = _published("qwen2_vl.image_processing_pil_qwen2_vl")
of_videos = _published("qwen3_vl.video_processing_qwen3_vl")
FULL, TINY = preset("qwen3_vl_8b"), preset("tiny_qwen3_vl")
OLDER, TINY_OLDER = preset("qwen2_5_vl_7b"), preset("tiny_qwen2_5_vl")
SIDES = st.integers(1, 3000)


def published_video_size(config: QwenVLConfig, frames, height, width):
    """The published processor's size, with its cap a frame."""
    side, (least, most) = config.tower.token_side, config.video_pixels
    cap = config.frame_tokens * side**2
    pixels = max(min(cap, most // frames), int(least * 1.05)) * frames
    return of_videos.smart_resize(frames, height, width, 2, side, least, pixels)


def older_video_size(config, frames, height, width):
    """The size of Qwen2.5-VL's published processor, with its share of all frames' pixels."""
    side, (least, most) = config.tower.token_side, config.video_pixels
    share = int(config.video_tokens * side * side * 0.9) * 2 // frames
    pixels = max(min(most, share), int(least * 1.05))
    return of_images.smart_resize(height, width, side, least, pixels)


def size_or_none(function, *arguments):
    """The size, None where the aspect ratio is refused."""
    try:
        return function(*arguments)
    except ValueError:
        return None


def check_size(ours, theirs, most=FULL.frame_tokens, others=False, config=FULL):
    """Equal to the published size of at most so many tokens, else refused.

    Args:
        ours: None where it was refused.
        theirs: None where the processor refuses.
        most: visual tokens of a pair of frames, or of an image.
        others: whether another size within `most` may stand in for one beyond it.
    """
    cap = most * config.tower.token_side**2
    if theirs is not None and math.prod(theirs) <= cap:
        assert ours == theirs
    else:
        assert ours is None or (theirs is not None and others and math.prod(ours) <= cap)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 800), SIDES, SIDES)
def test_videos_have_the_published_size(frames, height, width):
    theirs = size_or_none(published_video_size, FULL, frames, height, width)
    ours = size_or_none(video_size, FULL, frames, height, width)
    # It counts an odd video a frame short.
    check_size(ours, theirs, FULL.pair_tokens(frames), others=frames % 2 == 1)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 800), SIDES, SIDES)
def test_videos_of_qwen2_5_have_the_published_size(frames, height, width):
    theirs = size_or_none(older_video_size, OLDER, frames, height, width)
    ours = size_or_none(video_size, OLDER, frames, height, width)
    check_size(ours, theirs, OLDER.pair_tokens(frames), config=OLDER)


@pytest.fixture(scope="module")
def of_older():
    """The module of the older processor, whose rule of frames does without the torchvision that it
    imports.
    """
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            parts = ["torchvision", "transforms", "v2", "functional"]
            for name in itertools.accumulate(parts, "{}.{}".format):
                patch.setitem(sys.modules, name, types.ModuleType(name))
        # Gone again before a test asks whether torchvision is there.
        return _published("qwen2_vl.video_processing_qwen2_vl")


@settings(max_examples=200, deadline=None)
@given(available=st.integers(2, 5000), rate=st.floats(1, 120), most=st.integers(2, 800))
def test_pairs_of_frames_are_those_of_the_published_rule(of_older, available, rate, most):
    video = types.SimpleNamespace(total_num_frames=available, fps=rate)
    limits = types.SimpleNamespace(
        min_frames=4, max_frames=most, fps=2, num_frames=None, temporal_patch_size=2
    )
    published = of_older.Qwen2VLVideoProcessor.sample_frames(limits, video)
    ours = sampling.sample("two_fps_pairs", available, rate, most)
    assert ours.tolist() == published.tolist()[: len(ours)] and len(ours) % 2 == 0
    # Where its floating point makes one index too many, that one is behind the video.
    assert published.tolist()[len(ours) :] in ([], [available])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.floats(1, 120), st.integers(1, 800))
def test_frames_are_those_of_the_published_rule(available, rate, most):
    video = types.SimpleNamespace(total_num_frames=available, fps=rate)
    limits = types.SimpleNamespace(min_frames=4, max_frames=most, fps=2)
    published = of_videos.Qwen3VLVideoProcessor.sample_frames
    ours = sampling.sample("two_fps", available, rate, most)
    assert ours.tolist() == published(limits, video).tolist()


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES)
def test_images_have_the_published_size(height, width):
    side, most = FULL.tower.token_side, FULL.frame_tokens * FULL.tower.token_side**2
    budget = FULL.image_pixels[0], most
    theirs = size_or_none(of_images.smart_resize, height, width, side, *budget)
    check_size(size_or_none(image_size, FULL, height, width), theirs)


def test_small_images_stay_within_few_tokens():
    config = dataclasses.replace(FULL, frame_tokens=64)
    height, width = image_size(config, 100, 150)
    assert height * width <= 64 * 32**2 and (height, width) == (96, 160)
    config = dataclasses.replace(OLDER, frame_tokens=64)  # fewer than the published least of videos
    assert video_size(config, 8, 100, 150) == (112, 140)
    assert video_size(config, 8, 1000, 1500) == (168, 252)


@pytest.mark.parametrize("shape", [(1, 7000), (4000, 10)])
@pytest.mark.parametrize("config", [FULL, OLDER], ids=["qwen3_vl", "qwen2_5_vl"])
def test_aspect_ratios_the_processor_refuses(config, shape):
    with pytest.raises(InputError, match=r"times the other.*crop the longer|frame_tokens"):
        image_size(config, *shape)
    with pytest.raises(InputError, match=r"times the other.*crop the longer|frame_tokens"):
        video_size(config, 8, *shape)


@pytest.mark.parametrize("shape", [(4, 16, 16), (5, 40, 20), (1, 33, 50), (2, 16, 64)])
def test_patches_are_those_of_the_published_order(shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    ours = preprocess(frames, TINY)
    size = video_size(TINY, *shape)
    resized = np.stack(
        [
            np.asarray(Image.fromarray(f).resize(size[::-1], Image.Resampling.BICUBIC))
            for f in frames
        ]
    )
    video = torch.tensor(resized).permute(0, 3, 1, 2)[None]
    processor = types.SimpleNamespace()
    patches, t, h, w = of_videos.Qwen3VLVideoProcessor.patchify(processor, video, 8, MERGE, 2)
    assert grids(ours).tolist() == [[h, w]] * t
    np.testing.assert_array_equal(
        ours[:, 1 : 1 + h * w].reshape(-1, ours.shape[-1]), patches[0].numpy()
    )
    assert not ours[:, 1 + h * w :].any()


def test_an_image_is_a_pair_of_itself():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))
    one = picture(image, TINY)
    assert one.tokens == (len(one.patch_index),) and one.views.shape[0] == 1
    pairs = one.views[0, 1:].reshape(-1, 3, 2, 8, 8)
    np.testing.assert_array_equal(pairs[:, :, 0], pairs[:, :, 1])
    assert int(grids(one.views)[0].prod()) == MERGE**2 * one.tokens[0]


def test_pixels_are_within_one_level_of_the_published_resize():
    """Frames that are enlarged differ by two levels in some places per million."""
    pytest.importorskip("torchvision", reason="the published resize runs in torchvision")
    from transformers import Qwen3VLVideoProcessor

    config = dataclasses.replace(FULL, frame_tokens=30)
    least, most = config.video_pixels
    theirs = Qwen3VLVideoProcessor(
        size={"shortest_edge": least, "longest_edge": most}, max_video_tokens=30
    )
    noise = np.random.default_rng(0).integers(0, 256, (3, 15, 22, 3), np.uint8)
    frames = np.stack([np.asarray(Image.fromarray(f).resize((330, 210))) for f in noise])
    out = theirs(
        [torch.tensor(frames).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        return_tensors="pt",
    )
    ours = preprocess(frames, config)
    assert [2, *grids(ours)[0]] == out["video_grid_thw"][0].tolist()
    real = ours[:, 1 : 1 + int(grids(ours)[0].prod())].reshape(-1, ours.shape[-1])
    levels = (out["pixel_values_videos"].numpy() + 1) * 127.5
    assert np.abs(levels - real).max() <= 1.01


def test_a_wrong_array_is_refused():
    with pytest.raises(ValueError, match="must be uint8"):
        processing.preprocess(np.zeros((2, 8, 8, 3), np.float32), TINY)


def sampled_rate(available, fps, indices):
    """What the published processor divides by for `second_per_grid_ts`."""
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(available, fps=fps, frames_indices=indices).sampled_fps


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["uniform", "two_fps", "two_fps_pairs"]),
    st.integers(2, 3000),
    st.sampled_from([1.0, 23.976, 25.0, 30.0]),
    st.integers(2, 300),
)
def test_times_of_a_whole_video_are_the_published_positions(rule, available, fps, most):
    indices = sampling.sample(rule, available, fps, most)
    rate = sampling.rate_of(indices / fps, available / fps)
    theirs = sampled_rate(available, fps, indices)
    assert rate == pytest.approx(theirs, rel=1e-9)
    count = -(-len(indices) // 2)
    step = torch.tensor([2 / theirs])[0] * OLDER.tower.tokens_per_second
    ours = processing.time_positions(OLDER.tower, count, rate)
    assert ours.tolist() == (torch.arange(count) * step).long().tolist()


def test_frames_of_a_part_are_at_their_own_distance():
    assert sampling.rate_of([30.0, 31.0, 32.0, 33.0], 600.0) == pytest.approx(1.0)
    assert sampling.rate_of([33.0, 30.0, 31.0, 32.0], 600.0) == pytest.approx(1.0)
    assert sampling.rate_of([5.0], 600.0) == 0.0


def test_headers_hold_the_times():
    from tpo_jax.families.qwen_vl.model import times_of

    tower = dataclasses.replace(TINY_OLDER.tower, tokens_per_second=25)
    config = dataclasses.replace(TINY_OLDER, tower=tower, frame_tokens=4)
    frames = preprocess(np.zeros((1400, 16, 16, 3), np.uint8), config, rate=0.1)
    assert np.asarray(times_of(frames)).tolist() == [500 * i for i in range(700)]
    image = picture(Image.new("RGB", (40, 20)), config).views
    unknown = preprocess(np.zeros((96, 16, 16, 3), np.uint8), config)
    assert not times_of(image).any() and times_of(unknown)[24] == 50  # of 24 frames a second
