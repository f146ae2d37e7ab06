"""Activations have the layout they are constrained to, on CPU as well."""

import jax
import numpy as np
import pytest

from tests.batches import SMALL, random_batch
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.models.vlm import gather_logps
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import constrain, parameter_shardings


@pytest.mark.parametrize("frames", [3, 9])  # neither divides over four chips; 9 take two rounds
def test_frames_are_shared_by_the_chips_of_a_row(frames):
    batch, params = random_batch(B=2, F=frames, P=80), random_params(SMALL)
    encode = jax.jit(lambda p, x: families.bind(SMALL, p).encode_frames(x))
    expected = encode(params, batch.frames)
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})):
        visual = encode(params, batch.frames)
    B, n, D = expected.shape
    assert visual.sharding.shard_shape(visual.shape) == (B // 2, n, D // 4)
    np.testing.assert_allclose(visual, expected, atol=1e-4, rtol=1e-4)


def test_a_size_that_does_not_divide_is_named():
    with (
        jax.set_mesh(make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})),
        pytest.raises(InputError, match="size 12 cannot be split over fsdp=8.*divisor is 4"),
    ):
        constrain(jax.numpy.zeros((12, 3)), "fsdp", None)


@pytest.mark.parametrize("rows", [151646, 152064])
def test_both_vocabularies_are_split_over_any_mesh(rows):
    tree = {
        "embed": {"embedding": jax.ShapeDtypeStruct((rows, 64), np.float32)},
        "head": {"kernel": jax.ShapeDtypeStruct((64, rows), np.float32)},
    }
    for fsdp, tensor, context in ((8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)):
        mesh = make_mesh({"data": 1, "fsdp": fsdp, "tensor": tensor, "context": context})
        embed, head = jax.tree.leaves(parameter_shardings(mesh, {"decoder": tree}))
        width = 64 // (fsdp * context)
        assert embed.shard_shape((rows, 64))[1] == width
        whole = (width, rows) if rows % 8 else (64, rows // 8)
        assert head.shard_shape((64, rows)) == whole
    targets = np.arange(4)
    hidden, weights = np.ones((1, 4, 8), np.float32), np.ones((8, rows % 1000), np.float32)
    expected = gather_logps(hidden, weights, targets[None])
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})):
        np.testing.assert_allclose(jax.jit(gather_logps)(hidden, weights, targets[None]), expected)
