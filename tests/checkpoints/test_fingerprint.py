"""The hash of a model's weights depends on their names and values alone."""

import jax
import numpy as np

from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.parallel.mesh import make_mesh


def test_the_fingerprint_of_weights_is_that_of_their_values():
    weights = {"a": {"kernel": np.arange(64, dtype=np.float32).reshape(8, 8)}, "b": np.ones(8)}

    def fingerprint(tree, **sizes):
        mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes)
        sharding = jax.NamedSharding(mesh, jax.P(("fsdp", "context")))
        return weights_fingerprint(jax.device_put(tree, sharding))

    plain = weights_fingerprint(weights)
    assert fingerprint(weights, fsdp=8) == fingerprint(weights, data=4, context=2) == plain
    turned = weights | {"a": {"kernel": weights["a"]["kernel"].T}}
    moved = {"a": {"kernel": weights["a"]["kernel"]}, "c": np.ones(8)}
    nudged = weights | {"b": np.nextafter(weights["b"], 2, dtype=np.float32)}
    assert len({plain, *map(weights_fingerprint, (turned, moved, nudged))}) == 4
