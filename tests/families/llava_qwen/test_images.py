"""Which views an image is cut into and how many tokens it takes: properties, and the originals'
arithmetic for images of any size.
"""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import ImageConfig, from_dict, pinpoints
from tpo_jax.families.llava_qwen.images import best_resolution, tiling
from tpo_jax.models.pictures import round_views

LONGVA, LLAVA = families.preset("longva_7b"), families.preset("llava_video_7b")
sides = st.integers(1, 3000)


def test_published_pinpoints():
    """Those of the original training scripts."""
    longva, llava = LONGVA.images.pinpoints, LLAVA.images.pinpoints
    assert len(longva) == 200 and len(llava) == 36
    assert longva[:2] == ((336, 672), (336, 1008)) and (336, 336) not in longva
    assert llava[:2] == ((384, 384), (384, 768)) and llava[-1] == (2304, 2304)
    assert max(w * h for w, h in longva) == 49 * 336**2


@settings(max_examples=60)
@given(width=sides, height=sides)
@example(width=6720, height=137)
@example(width=1, height=2305)
def test_tokens_of_both_families(width, height):
    """144 a tile; 729 and at most 9 * 729 * 1.21 patches with a newline behind every row."""
    laid = tiling(LONGVA, width, height)
    tiles = math.prod(laid.grid)
    assert not laid.whole and len(laid.patch_index) == 144 * tiles <= 7056
    assert np.array_equal(np.sort(laid.patch_index.reshape(-1)), 1 + np.arange(576 * tiles))

    laid = tiling(LLAVA, width, height)
    newlines = laid.patch_index[:, 0] == 0
    patches = len(laid.patch_index) - 729 - newlines.sum()
    assert laid.whole and not newlines[:729].any() and newlines[-1]
    assert 0 < patches <= 9 * 729 * 1.21
    assert patches % newlines.sum() == 0
    np.testing.assert_allclose(laid.patch_weight.sum(-1), 1, atol=1e-6)
    assert (laid.patch_weight >= 0).all()
    assert laid.patch_index.max() <= 729 * (1 + math.prod(laid.grid))


def test_an_image_of_one_tile_is_its_patches_twice():
    laid = tiling(LLAVA, 384, 384)
    rows = np.pad(730 + np.arange(729).reshape(27, 27), ((0, 0), (0, 1)))
    wanted = [*range(1, 730), *rows.reshape(-1)]
    assert laid.patch_index[:, 0].tolist() == wanted and laid.grid == (1, 1)


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_a_single_view(aspect):
    """Unpooled; LLaVA-Video puts one newline behind."""
    for config, tokens in ((LONGVA, 576), (LLAVA, 730)):
        stills = dataclasses.replace(config.images, aspect=aspect)
        laid = tiling(dataclasses.replace(config, stills=stills), 500, 400)
        assert laid.grid is None and len(laid.patch_index) == tokens


def test_flat_keeps_all_patches_of_all_views():
    stills = ImageConfig("flat", "anyres", ((336, 672),))
    laid = tiling(dataclasses.replace(LONGVA, stills=stills), 500, 400)
    assert laid.patch_index[:, 0].tolist() == list(range(1, 1 + 3 * 576))


@pytest.mark.parametrize(
    ("stills", "message"),
    [
        (ImageConfig("spatial", "anyres", ((384, 384),)), "mm_patch_merge_type='spatial'"),
        (ImageConfig("spatial_unpad", "highres"), "image_aspect_ratio='highres'"),
        (ImageConfig("spatial_unpad", "anyres", ((400, 384),)), "no multiple of the tower's 384"),
        (ImageConfig("spatial_unpad", "anyres", ()), "image_grid_pinpoints: none"),
    ],
)
def test_what_is_not_done_is_named(stills, message):
    with pytest.raises(InputError, match=message):
        tiling(dataclasses.replace(LLAVA, stills=stills), 100, 100)


def test_images_need_the_newline_vector():
    stills = LLAVA.images
    config = dataclasses.replace(LLAVA, newline="no_token", stills=stills)
    with pytest.raises(InputError, match="no_token"):
        tiling(config, 100, 100)
    assert from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([[336, 672], [672, 336]], ((336, 672), (672, 336))),
        ("[(336, 672), (672, 336)]", ((336, 672), (672, 336))),
        ("[[336, 672], [672, 336]]", ((336, 672), (672, 336))),
        ("(1x2),(2x1)", ((10, 20), (20, 10))),
        ("(1x1),...,(2x2)", ((10, 10), (10, 20), (20, 10), (20, 20))),
        (None, ()),
    ],
)
def test_spellings_of_pinpoints(given, wanted):
    assert pinpoints(given, 10) == wanted


@pytest.mark.parametrize("bad", ["many", [[1, 2, 3]], [["a", "b"]], 7])
def test_no_pinpoints(bad):
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        pinpoints(bad, 10)


def test_ties_go_to_the_first():
    assert best_resolution(100, 100, [(50, 100), (100, 50), (200, 100)]) == (200, 100)
    assert best_resolution(100, 100, [(100, 50), (50, 100)]) == (100, 50)
    assert best_resolution(100, 100, [(400, 400), (100, 100), (200, 200)]) == (100, 100)


@pytest.mark.parametrize("size", [(1, 2305), (2305, 1), (2, 40_000)])
def test_a_side_below_one_pixel_in_every_resolution(size):
    """The smallest resolution, one tile for LLaVA-Video, and no error: as in the originals."""
    assert tiling(LLAVA, *size).grid == (1, 1)
    assert best_resolution(*size, LLAVA.images.pinpoints) == (384, 384)
    laid = tiling(LLAVA, *size)
    newlines = (laid.patch_index[:, 0] == 0).sum()
    assert len(laid.patch_index) - 729 - newlines == 27  # one row or one column of patches
    assert best_resolution(1, 20_000, LONGVA.images.pinpoints) == (336, 672)


@given(n=st.integers(0, 500))
def test_few_numbers_of_views(n):
    assert n <= round_views(n) <= max(n, n * 1.5)
    assert len({round_views(i) for i in range(65)}) == 13
