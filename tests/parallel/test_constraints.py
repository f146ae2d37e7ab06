"""Activations lie where they are said to lie, on CPU too."""

import jax
import numpy as np
import pytest

from tests.batches import SMALL, random_batch
from tpo_jax.errors import InputError
from tpo_jax.models.vlm import bind, init_params
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import constrain


@pytest.mark.parametrize("frames", [3, 9])  # neither divides over four chips; 9 take two rounds
def test_frames_are_shared_by_the_chips_of_a_row(frames):
    batch, params = random_batch(B=2, F=frames, P=80), init_params(SMALL, seed=0)
    encode = jax.jit(lambda p, x: bind(SMALL, p).encode_frames(x))
    expected = encode(params, batch["frames"])
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})):
        visual = encode(jax.device_get(params), batch["frames"])
    B, n, D = expected.shape
    assert visual.sharding.shard_shape(visual.shape) == (B // 2, n, D // 4)
    np.testing.assert_allclose(visual, expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_divide_is_named():
    with (
        jax.set_mesh(make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})),
        pytest.raises(InputError, match="size 12 cannot be split over fsdp=8.*divisor is 4"),
    ):
        constrain(jax.numpy.zeros((12, 3)), "fsdp", None)
