"""Sizes, frame pairs, patches, prompts and positions, compared with the published processor."""

import dataclasses
import importlib
import math
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl import processing
from tpo_jax.families.qwen_vl.config import MERGE, PRESETS, QwenVLConfig
from tpo_jax.families.qwen_vl.processing import grids, image_size, picture, preprocess, video_size
from tpo_jax.video import sampling

torch = pytest.importorskip("torch", reason="compared with PyTorch")
pytest.importorskip("transformers", reason="compared with transformers")


def _published(name):
    """A module by its path: by their names, `transformers` gives those only with torchvision."""
    return importlib.import_module(f"transformers.models.{name}")


of_images = _published("qwen2_vl.image_processing_pil_qwen2_vl")
of_videos = _published("qwen3_vl.video_processing_qwen3_vl")
FULL, TINY = PRESETS["qwen3_vl_8b"], PRESETS["tiny_qwen3_vl"]
SIDES = st.integers(1, 3000)


def published_video_size(config: QwenVLConfig, frames, height, width):
    """The published processor's size, with its cap a frame."""
    side, (least, most) = config.tower.token_side, config.video_pixels
    cap = config.frame_tokens * side**2
    pixels = max(min(cap, most // frames), int(least * 1.05)) * frames
    return of_videos.smart_resize(frames, height, width, 2, side, least, pixels)


def size_or_none(function, *arguments):
    """The size, None where the aspect ratio is refused."""
    try:
        return function(*arguments)
    except ValueError:
        return None


def check_size(ours, theirs, most=FULL.frame_tokens, others=False):
    """Equal to the published size of at most so many tokens, else refused.

    Args:
        ours: None where it was refused.
        theirs: None where the processor refuses.
        most: visual tokens of a pair of frames, or of an image.
        others: whether another size within `most` may stand in for one beyond it.
    """
    cap = most * FULL.tower.token_side**2
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


@pytest.mark.parametrize("shape", [(1, 7000), (4000, 10)])
def test_aspect_ratios_the_processor_refuses(shape):
    with pytest.raises(InputError, match=r"times the other.*crop the longer|frame_tokens"):
        image_size(FULL, *shape)
    with pytest.raises(InputError, match=r"times the other.*crop the longer|frame_tokens"):
        video_size(FULL, 8, *shape)


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
