"""The hash of a model's weights depends on their names and values alone."""

import jax
import numpy as np
import pytest

from tpo_jax.checkpoints.fingerprint import tensor_sums, weights_fingerprint
from tpo_jax.parallel.mesh import make_mesh


def test_the_fingerprint_of_weights_is_that_of_their_values():
    weights = {"a": {"kernel": np.arange(64, dtype=np.float32).reshape(8, 8)}, "b": np.ones(8)}

    def fingerprint(tree, **sizes):
        mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes)
        sharding = jax.NamedSharding(mesh, jax.P(("fsdp", "context")))
        return weights_fingerprint(jax.device_put(tree, sharding))

    plain = weights_fingerprint(weights)
    assert plain == "04dbebaf40f11f4172d07c8fd5921ab1"  # what is stored was computed with it
    assert fingerprint(weights, fsdp=8) == fingerprint(weights, data=4, context=2) == plain
    turned = weights | {"a": {"kernel": weights["a"]["kernel"].T}}
    moved = {"a": {"kernel": weights["a"]["kernel"]}, "c": np.ones(8)}
    nudged = weights | {"b": np.nextafter(weights["b"], 2, dtype=np.float32)}
    assert len({plain, *map(weights_fingerprint, (turned, moved, nudged))}) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("spec", [jax.P(), jax.P(None, "fsdp", "tensor")], ids=["whole", "split"])
def test_no_copy_of_a_tensor_is_made(dtype, spec):
    """Of 7B parameters copies in 32 bits take more memory than a machine of 24 GB has, and a
    gathered stack more than a chip has.
    """
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2, "context": 1})
    sharding = jax.NamedSharding(mesh, spec)
    stack = jax.ShapeDtypeStruct((4, 256, 128), dtype, sharding=sharding)
    used = tensor_sums.lower({"stack": stack}).compile().memory_analysis()
    assert used.temp_size_in_bytes < 1024
