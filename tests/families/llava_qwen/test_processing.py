"""Pixels are those of the Hugging Face processors' Pillow back ends, to the bit."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    SiglipImageProcessorPil,
)

from tpo_jax import families
from tpo_jax.data.images import read_pictures
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.families.llava_qwen.images import tiling
from tpo_jax.families.llava_qwen.processing import cut, preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
sides = st.integers(1, 160)


def tower(kind: str, size: int) -> SimpleNamespace:
    return SimpleNamespace(tower=SimpleNamespace(kind=kind, image_size=size, mean=MEAN))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise below a gradient and a hard edge, so that filters overshoot."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    noise[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]
    noise[:, : width // 3] = 255
    return noise


def processed(kind: str, size: int, image: np.ndarray) -> np.ndarray:
    plain = {"do_rescale": False, "do_normalize": False, "resample": Image.Resampling.BICUBIC}
    if kind == "clip":
        shapes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        processor = CLIPImageProcessorPil(**shapes, **plain)
    else:
        processor = SiglipImageProcessorPil(size={"height": size, "width": size}, **plain)
    # Left to itself it takes a height of 1 or 3 for channels.
    batch = processor(image, input_data_format="channels_last", return_tensors="np")
    pixels = batch["pixel_values"][0]
    return pixels.transpose(1, 2, 0)


@settings(max_examples=40)
@given(kind=st.sampled_from(["clip", "siglip"]), height=sides, width=sides, size=st.integers(1, 96))
@example(kind="clip", height=90, width=160, size=56)
@example(kind="clip", height=56, width=56, size=56)
@example(kind="siglip", height=1, width=160, size=64)
def test_as_hugging_face_does(kind, height, width, size):
    image = picture(height, width)
    ours = preprocess(image[None], tower(kind, size))
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours[0], processed(kind, size, image))


@pytest.mark.parametrize(("kind", "size"), [("clip", 336), ("siglip", 384)])
def test_a_whole_frame_at_full_size(kind, size):
    image = picture(720, 1280)
    np.testing.assert_array_equal(
        preprocess(image[None], tower(kind, size))[0], processed(kind, size, image)
    )


@given(height=sides, width=sides)
@settings(max_examples=20)
def test_padding_keeps_the_whole_picture(height, width):
    """The picture in the middle of a square of the mean colour, and then as without padding."""
    image = picture(height, width)
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = (122, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    ours = preprocess(image[None], tower("clip", 32), pad=True)
    np.testing.assert_array_equal(ours[0], processed("clip", 32, square))


@pytest.mark.parametrize("name", ["longva_7b", "llava_video_7b"])
@settings(max_examples=12)
@given(height=sides, width=sides)
@example(height=900, width=1600)
@example(height=1500, width=130)
@example(height=2305, width=1)
def test_views_of_a_still_image(name, height, width):
    """Those of the originals, to the bit; and of transformers' reading of the same algorithm."""
    from tests.originals import anyres_views  # skips where PyTorch is not there

    config = families.preset(name)
    config = dataclasses.replace(config, tower=dataclasses.replace(config.tower, image_size=56))
    side, image = 56, Image.fromarray(picture(height, width))
    laid = tiling(config, width, height)
    ours, theirs = cut(image, laid, config), anyres_views(image, side, config.images.pinpoints)
    np.testing.assert_array_equal(ours, theirs[0 if laid.whole else 1 :])

    processor = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side},
        # It takes height before width.
        image_grid_pinpoints=[[h, w] for w, h in config.images.pinpoints],
        do_rescale=False,
        do_normalize=False,
    )
    batch = processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(theirs, batch.transpose(0, 2, 3, 1))


def test_pictures_of_files(tmp_path):
    config = families.preset("tiny_llava_video")
    first, second = picture(40, 70), picture(64, 32, seed=1)
    Image.fromarray(first).save(tmp_path / "a.png")
    alpha = np.concatenate([second, second[..., :1]], axis=-1)
    Image.fromarray(alpha, "RGBA").save(tmp_path / "b.png")
    pictures = read_pictures([tmp_path / "a.png", tmp_path / "b.png"], config)
    layouts = [tiling(config, 70, 40), tiling(config, 32, 64)]
    views = [
        cut(Image.fromarray(x), laid, config)
        for x, laid in zip((first, second), layouts, strict=True)
    ]
    np.testing.assert_array_equal(pictures.views, np.concatenate(views))
    assert pictures.tokens == tuple(len(laid.patch_index) for laid in layouts)
    # The patches of the second image come after all of the first's.
    n, skipped = pictures.tokens[0], len(views[0]) * config.tower.grid**2
    index = layouts[1].patch_index
    np.testing.assert_array_equal(pictures.patch_index[n:], np.where(index, index + skipped, 0))
    nothing = read_pictures([], config)
    assert nothing.tokens == () and len(nothing.views) == len(nothing.patch_index) == 0


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    Image.fromarray(picture(90, 90)).save(path)
    path.write_bytes(path.read_bytes()[:300] if content == "half" else content)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image: ") as error:
        read_pictures([path], families.preset("tiny_longva"))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="nothing.png: cannot be read as an image: No such file"):
        read_pictures([tmp_path / "nothing.png"], families.preset("tiny_longva"))


def test_frames_are_encoded_independently():
    frames = np.stack([picture(40, 60, seed) for seed in range(3)])
    together = preprocess(frames, tower("clip", 28))
    for frame, expected in zip(frames, together, strict=True):
        np.testing.assert_array_equal(preprocess(frame[None], tower("clip", 28))[0], expected)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4, 1), np.uint8)],
)
def test_arrays_that_are_not_frames_are_an_error(wrong):
    with pytest.raises(ValueError, match="uint8"):
        preprocess(wrong, tower("clip", 28))


def test_an_unknown_tower_is_an_error():
    with pytest.raises(ValueError, match="'dino'"):
        TowerConfig("dino", 28, 14, width=8, layers=1, heads=1, mlp_width=8)
