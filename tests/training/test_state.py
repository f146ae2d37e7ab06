"""Moments in bfloat16 follow those in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tpo_jax.errors import InputError
from tpo_jax.training.state import Optimizer, make_optimizer


def run(moments, steps=300):
    optimizer = make_optimizer(Optimizer(moments=moments), optax.constant_schedule(1e-2))
    target = jnp.linspace(-1, 1, 4096)
    params = {"kernel": jnp.zeros(4096)}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        noise = 0.1 * jax.random.normal(key, target.shape)
        updates, state = optimizer.update(
            {"kernel": params["kernel"] - target + noise}, state, params
        )
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
    return params["kernel"], optax.tree.get(state, "nu")["kernel"]


def test_bfloat16_moments_are_right_on_average():
    (x, nu), (x16, nu16) = run("float32"), run("bfloat16")
    assert nu16.dtype == jnp.bfloat16
    # Rounding to nearest would freeze the second moment: 1 - b2 is less than half a digit.
    assert abs(float(nu16.astype(jnp.float32).mean() / nu.mean()) - 1) < 5e-3
    np.testing.assert_allclose(x16, x, atol=0.02)


def test_another_dtype_is_refused():
    with pytest.raises(InputError, match="train.moments='float16'"):
        run("float16", 1)
