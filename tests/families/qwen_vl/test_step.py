"""The train step: videos of several shapes in one batch, shared prefixes, a mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.families.qwen_vl import tiny
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.families.qwen_vl.config import MERGE
from tpo_jax.families.qwen_vl.processing import grids, preprocess
from tpo_jax.models import classic
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings, to_global

CONFIGS = {
    name: dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, vocab_size=96, rope_theta=1e4)
    )
    for name, config in tiny.CONFIGS.items()
}
SHAPES = [(4, 24, 40), (5, 50, 16), (1, 16, 16), (2, 200, 30)]  # frames, height, width
F, P, Q, A, R = 3, 64, 2, 2, 8


def make_batch(config):
    """A video per row, text before it and, of Qwen3-VL, before each of its pairs of frames."""
    draws, rows = np.random.default_rng(0), len(SHAPES)
    frames = np.zeros((rows, F, *config.frame_shape), np.uint8)
    index, lengths = np.full((rows, P), -1, np.int32), []
    for row, shape in enumerate(SHAPES):
        pairs = preprocess(draws.integers(0, 256, (*shape, 3), np.uint8), config, rate=4.0)
        frames[row, : len(pairs)] = pairs
        tokens, at = int(grids(pairs)[0].prod()) // MERGE**2, 0
        for pair in range(len(pairs)):
            at += 3 if config.frame_text or not pair else 0
            index[row, at : at + tokens] = pair * config.frame_tokens + np.arange(tokens)
            at += tokens
        lengths.append(at + 1 + row)
    mask = np.arange(P) < np.array(lengths)[:, None]
    ids = draws.integers(1, config.decoder.vocab_size, (rows, P)).astype(np.int32)
    texts = rows, Q, A, R
    used = np.arange(R) < draws.integers(2, R + 1, texts[:3])[..., None]
    return Batch(
        frames=frames,
        prefix_ids=np.where(mask & (index < 0), ids, 0),
        prefix_mask=mask,
        visual_index=index,
        input_ids=draws.integers(1, config.decoder.vocab_size, texts).astype(np.int32),
        input_mask=used,
        target_ids=draws.integers(1, config.decoder.vocab_size, texts).astype(np.int32),
        target_mask=used,
    )


def log_probability_and_gradient(token_logps, config, params, batch):
    weight = np.random.default_rng(2).standard_normal(batch.input_ids.shape, np.float32)

    @jax.jit
    def run(params, batch):
        def total(params):
            return (token_logps(families.bind(config, params), batch) * weight).sum()

        return jax.value_and_grad(total)(params)

    return jax.device_get(run(params, batch))


def shared(model, batch):
    return model.token_logps(batch, remat="full", chunk=4)


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_prefix_on_a_mesh_equals_two_rows_on_one_device(name):
    config = CONFIGS[name]
    weights, batch = random_params(config), make_batch(config)
    expected = log_probability_and_gradient(classic.token_logps, config, weights, batch)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    placed = jax.device_put(weights, parameter_shardings(mesh, weights))
    with jax.set_mesh(mesh):
        found = log_probability_and_gradient(shared, config, placed, to_global(batch, mesh))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)

    def close(path, one, other):
        error = np.linalg.norm(one - other)
        assert error <= 1e-5 * np.linalg.norm(other) + 1e-6, (jax.tree_util.keystr(path), error)

    jax.tree_util.tree_map_with_path(close, found[1], expected[1])
