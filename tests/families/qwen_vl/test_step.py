"""The train step of Qwen3-VL: videos of several shapes in one batch, shared prefixes, a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.qwen_vl import tiny
from tpo_jax import families
from tpo_jax.families.qwen_vl.config import MERGE
from tpo_jax.families.qwen_vl.processing import grids, preprocess
from tpo_jax.models import classic
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings, to_global

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    decoder=dataclasses.replace(tiny.CONFIG.decoder, vocab_size=96, rope_theta=1e4),
)
SHAPES = [(4, 24, 40), (5, 50, 16), (1, 16, 16), (2, 200, 30)]  # frames, height, width
F, P, Q, A, R = 3, 64, 2, 2, 8


def make_batch():
    """A video per row, text before each of its pairs of frames and after them."""
    draws, rows = np.random.default_rng(0), len(SHAPES)
    frames = np.zeros((rows, F, *CONFIG.frame_shape), np.uint8)
    index, lengths = np.full((rows, P), -1, np.int32), []
    for row, shape in enumerate(SHAPES):
        pairs = preprocess(draws.integers(0, 256, (*shape, 3), np.uint8), CONFIG)
        frames[row, : len(pairs)] = pairs
        tokens, at = int(grids(pairs)[0].prod()) // MERGE**2, 0
        for pair in range(len(pairs)):
            at += 3
            index[row, at : at + tokens] = pair * CONFIG.frame_tokens + np.arange(tokens)
            at += tokens
        lengths.append(at + 1 + row)
    mask = np.arange(P) < np.array(lengths)[:, None]
    ids = draws.integers(1, CONFIG.decoder.vocab_size, (rows, P)).astype(np.int32)
    texts = rows, Q, A, R
    used = np.arange(R) < draws.integers(2, R + 1, texts[:3])[..., None]
    return Batch(
        frames=frames,
        prefix_ids=np.where(mask & (index < 0), ids, 0),
        prefix_mask=mask,
        visual_index=index,
        input_ids=draws.integers(1, CONFIG.decoder.vocab_size, texts).astype(np.int32),
        input_mask=used,
        target_ids=draws.integers(1, CONFIG.decoder.vocab_size, texts).astype(np.int32),
        target_mask=used,
    )


@functools.cache
def params():
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.05 * noise.standard_normal(x.shape, np.float32),
        families.init_params(CONFIG, seed=0),
    )


def log_probability_and_gradient(token_logps, params, batch):
    weight = np.random.default_rng(2).standard_normal(batch.input_ids.shape, np.float32)

    @jax.jit
    def run(params, batch):
        def total(params):
            return (token_logps(families.bind(CONFIG, params), batch) * weight).sum()

        return jax.value_and_grad(total)(params)

    return jax.device_get(run(params, batch))


@functools.cache
def of_two_rows():
    batch = jax.tree.map(jnp.asarray, make_batch())
    return log_probability_and_gradient(classic.token_logps, params(), batch)


def shared(model, batch):
    return model.token_logps(batch, remat="full", chunk=4)


@pytest.mark.parametrize("sizes", [None, {"data": 1, "fsdp": 2, "tensor": 2, "context": 2}])
def test_shared_prefix_equals_two_rows(sizes):
    expected = of_two_rows()
    if sizes is None:
        found = log_probability_and_gradient(shared, params(), make_batch())
    else:
        mesh = make_mesh(sizes)
        placed = jax.device_put(params(), parameter_shardings(mesh, params()))
        with jax.set_mesh(mesh):
            found = log_probability_and_gradient(shared, placed, to_global(make_batch(), mesh))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)

    def close(path, one, other):
        error = np.linalg.norm(one - other)
        assert error <= 1e-5 * np.linalg.norm(other) + 1e-6, (jax.tree_util.keystr(path), error)

    jax.tree_util.tree_map_with_path(close, found[1], expected[1])
