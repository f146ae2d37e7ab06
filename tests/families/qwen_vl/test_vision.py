"""The vision tower against the one of `transformers`, float32, highest matmul precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tpo_jax.checkpoints.huggingface import flatten
from tpo_jax.checkpoints.native import nested
from tpo_jax.families.qwen_vl import weights
from tpo_jax.families.qwen_vl.config import PRESETS, QwenVLConfig, TowerConfig
from tpo_jax.families.qwen_vl.model import QwenVL
from tpo_jax.families.qwen_vl.vision import places
from tpo_jax.families.weights import from_torch, leaves
from tpo_jax.models.blocks import Projections

torch = pytest.importorskip("torch", reason="the parity tests compare with PyTorch")
qwen3_vl = pytest.importorskip("transformers.models.qwen3_vl", reason="compared with transformers")

TOWER = TowerConfig("qwen3_vl", 4, 48, 4, 3, 40, table=5, deepstack=(0, 2))
OUTPUTS, PATCHES = 24, 56
DECODER = dataclasses.replace(PRESETS["tiny_qwen3_vl"].decoder, width=OUTPUTS)
CONFIG = QwenVLConfig(TOWER, DECODER, frame_tokens=PATCHES // 4)
# Rows and columns of patches: wide, one block, tall, none, all patches, square.
GRIDS = ((4, 8), (2, 2), (12, 2), (0, 0), (4, 14), (6, 6))
EXACT = 1e-5


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = qwen3_vl.Qwen3VLVisionModel(
        qwen3_vl.Qwen3VLVisionConfig(
            depth=TOWER.layers,
            hidden_size=TOWER.width,
            intermediate_size=TOWER.mlp_width,
            num_heads=TOWER.heads,
            patch_size=TOWER.patch_size,
            out_hidden_size=OUTPUTS,
            num_position_embeddings=TOWER.table**2,
            deepstack_visual_indexes=list(TOWER.deepstack),
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        for name, x in model.named_parameters():
            centre = float("norm" in name and name.endswith("weight"))
            x.normal_(centre, x[0].numel() ** -0.5 if x.ndim > 1 else 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model(original):
    """Our modules with the original's weights; the decoder's have no part in it."""
    made, state = nnx.split(nnx.eval_shape(lambda: QwenVL(CONFIG, nnx.Rngs(0), Projections())))
    state = flatten(nnx.to_pure_dict(state))
    shapes = {path: x.shape for path, x in state.items() if not path.startswith("decoder/")}
    stored = {weights.VISION + k: v.numpy() for k, v in original.state_dict().items()}
    params = {path: np.zeros(x.shape, np.float32) for path, x in state.items()}
    for path, leaf in leaves(shapes, weights.SINGLE, weights.STACKS).items():
        parts = [from_torch(leaf, stored.pop(name)) for name in leaf.names]
        params[path] = np.stack(parts) if leaf.stacked else parts[0]
    assert not stored
    return nnx.merge(made, nested(jax.tree.map(jnp.asarray, params)))


def patches(seed=0):
    shape = (len(GRIDS), PATCHES, TOWER.patch_pixels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def theirs(original, pixels):
    """Blocks and merged tokens of all frames, as the original packs them."""
    x = [
        (torch.tensor(p[: r * c]) / 255 - 0.5) / 0.5
        for p, (r, c) in zip(pixels, GRIDS, strict=True)
    ]
    grid = torch.tensor([(1, r, c) for r, c in GRIDS if r])
    with torch.no_grad():
        out = original(torch.cat(x), grid_thw=grid)
    merged = torch.cat([out.pooler_output, *out.deepstack_features], dim=-1)
    return out.last_hidden_state.numpy(), merged.numpy()


def packed(x, unit=1):
    """The real parts of `[m, N, ...]`, one after the other."""
    return np.concatenate(
        [np.asarray(p)[: r * c // unit] for p, (r, c) in zip(x, GRIDS, strict=True)]
    )


@jax.jit
def _run(model, pixels, grid):
    outputs = model.tower(pixels, grid)
    return outputs[0], model.merged(outputs)


def test_frames_of_many_shapes_in_one_batch(original, model, agree):
    pixels = patches()
    last, merged = _run(model, pixels, np.array(GRIDS, np.int32))
    hidden, tokens = theirs(original, pixels)
    agree("Qwen3-VL vision blocks", packed(last), hidden, EXACT)
    agree("Qwen3-VL merger and DeepStack features", packed(merged, 4), tokens, EXACT)


def test_padding_never_changes_a_number(model):
    grid, pixels, other = np.array(GRIDS, np.int32), patches(), patches(1)
    _, _, real = places(grid, PATCHES)
    other = np.where(np.asarray(real)[..., None], pixels, other)
    first, second = (packed(_run(model, p, grid)[1], 4) for p in (pixels, other))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(np.asarray(_run(model, pixels, grid)[1])).all()  # of an empty frame, too


def test_gradients_of_padding_are_zero(model):
    grid = np.array(GRIDS, np.int32)
    x = patches().astype(np.float32)

    _, _, real = places(grid, PATCHES)

    def total(x):
        return sum((y * real[..., None]).sum() for y in model.tower(x, grid, remat=True))

    gradient = np.asarray(jax.jit(jax.grad(total))(x))
    assert np.isfinite(gradient).all()
    assert not gradient[~np.asarray(real)].any() and gradient[np.asarray(real)].any()
