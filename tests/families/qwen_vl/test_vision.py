"""The vision towers against those of `transformers`, float32, highest matmul precision."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import flatten
from tpo_jax.checkpoints.native import nested
from tpo_jax.families.qwen_vl import weights
from tpo_jax.families.qwen_vl.config import TowerConfig
from tpo_jax.families.qwen_vl.model import QwenVL
from tpo_jax.families.qwen_vl.vision import places
from tpo_jax.families.qwen_vl.windows import window_order
from tpo_jax.families.weights import from_torch
from tpo_jax.models.blocks import Projections

torch = pytest.importorskip("torch", reason="the parity tests compare with PyTorch")
vision_utils = pytest.importorskip("transformers.vision_utils", reason="compared with it")
originals = pytest.importorskip("tests.families.qwen_vl.originals")
OUTPUTS, PATCHES = 24, 56
TOWERS = {
    "Qwen3-VL": TowerConfig("qwen3_vl", 4, 48, 4, 3, 40, table=5, deepstack=(0, 2)),
    # Windows of nine visual tokens: neither the grids nor the padded sequence are multiples.
    "Qwen2.5-VL": TowerConfig(
        "qwen2_5_vl", 4, 48, 4, 3, 40, window=3, full_blocks=(1, 2), tokens_per_second=2
    ),
}
# Rows and columns of patches: wide, one block, tall, none, all patches, square.
GRIDS = ((4, 8), (2, 2), (12, 2), (0, 0), (4, 14), (6, 6))
EXACT = 1e-5


class Towers(NamedTuple):
    """An original, and ours with its weights."""

    name: str
    original: torch.nn.Module
    model: QwenVL


@pytest.fixture(scope="module", params=TOWERS)
def towers(request):
    """The decoder's weights have no part in it."""
    like = {"Qwen3-VL": "tiny_qwen3_vl", "Qwen2.5-VL": "tiny_qwen2_5_vl"}[request.param]
    tower, preset = TOWERS[request.param], families.preset(like)
    decoder = dataclasses.replace(preset.decoder, width=OUTPUTS)
    config = type(preset)(tower, decoder, frame_tokens=PATCHES // 4)
    original = originals.make_original(config).model.visual
    made, state = nnx.split(nnx.eval_shape(lambda: QwenVL(config, nnx.Rngs(0), Projections())))
    state = flatten(nnx.to_pure_dict(state))
    shapes = {path: x.shape for path, x in state.items() if not path.startswith("decoder/")}
    stored = {weights.VISION + k: v.numpy() for k, v in original.state_dict().items()}
    params = {path: np.zeros(x.shape, np.float32) for path, x in state.items()}
    for path, leaf in weights.rules(tower.kind, shapes).items():
        parts = [from_torch(leaf, stored.pop(name)) for name in leaf.names]
        params[path] = np.stack(parts) if leaf.stacked else parts[0]
    assert not stored
    model = nnx.merge(made, nested(jax.tree.map(jnp.asarray, params)))
    return Towers(request.param, original, model)


def patches(model, seed=0):
    shape = (len(GRIDS), PATCHES, model.config.tower.patch_pixels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def theirs(towers, pixels):
    """Blocks and merged tokens of all frames, as the original packs them; blocks of windows are put
    back in the order of the patches.
    """
    tower = towers.model.config.tower
    x = [
        originals.pixels_of(p[: r * c], tower.kind) for p, (r, c) in zip(pixels, GRIDS, strict=True)
    ]
    grid = torch.tensor([(1, r, c) for r, c in GRIDS if r])
    with torch.no_grad():
        out = towers.original(torch.cat(x), grid_thw=grid)
    last, levels = out.last_hidden_state, getattr(out, "deepstack_features", ())
    if tower.window:
        size = tower.window * tower.token_side
        order, _ = vision_utils.get_vision_window_index(grid, 2, size, tower.patch_size)
        last = last.reshape(len(order), 4, -1)[order.argsort()].reshape(last.shape)
    return last.numpy(), torch.cat([out.pooler_output, *levels], dim=-1).numpy()


def packed(x, unit=1):
    """The real parts of `[m, N, ...]`, one after the other."""
    return np.concatenate(
        [np.asarray(p)[: r * c // unit] for p, (r, c) in zip(x, GRIDS, strict=True)]
    )


@jax.jit
def _run(model, pixels, grid):
    outputs = model.tower(pixels, grid)
    return outputs[0], model.merged(outputs)


def test_frames_of_many_shapes_in_one_batch(towers, agree):
    pixels = patches(towers.model)
    last, merged = _run(towers.model, pixels, np.array(GRIDS, np.int32))
    hidden, tokens = theirs(towers, pixels)
    what = "merger and DeepStack features" if towers.name == "Qwen3-VL" else "merger"
    agree(f"{towers.name} vision blocks", packed(last), hidden, EXACT)
    agree(f"{towers.name} {what}", packed(merged, 4), tokens, EXACT)


def test_padding_never_changes_a_number(towers):
    grid, pixels = np.array(GRIDS, np.int32), patches(towers.model)
    _, _, real = places(grid, PATCHES)
    other = np.where(np.asarray(real)[..., None], pixels, patches(towers.model, 1))
    first, second = (packed(_run(towers.model, p, grid)[1], 4) for p in (pixels, other))
    np.testing.assert_array_equal(first, second)
    # Of an empty frame, too.
    assert np.isfinite(np.asarray(_run(towers.model, pixels, grid)[1])).all()


def test_gradients_of_padding_are_zero(towers):
    grid = np.array(GRIDS, np.int32)
    x = patches(towers.model).astype(np.float32)
    _, _, real = places(grid, PATCHES)

    def total(x):
        outputs = towers.model.tower(x, grid, remat=True)
        return sum((y * real[..., None]).sum() for y in outputs)

    gradient = np.asarray(jax.jit(jax.grad(total))(x))
    assert np.isfinite(gradient).all()
    assert not gradient[~np.asarray(real)].any() and gradient[np.asarray(real)].any()


_orders = jax.jit(window_order, static_argnums=1)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 6))
def test_windows_are_those_of_the_published_order(rows, columns, side):
    tokens, real = 260, rows * columns
    grid = np.array([[rows, columns]], np.int32)
    order, windows = (np.asarray(x)[0] for x in _orders(grid, tokens, side))
    theirs, ends = vision_utils.get_vision_window_index(
        torch.tensor([(1, 2 * rows, 2 * columns)]), 2, 2 * side, 1
    )
    np.testing.assert_array_equal(order[:real], theirs)
    np.testing.assert_array_equal(order[real:], np.arange(real, tokens))
    changes = 4 * (1 + np.flatnonzero(np.diff(windows[:real])))
    np.testing.assert_array_equal(ends, [0, *changes, 4 * real])
    assert (windows[real:] == -1).all()
