"""The TPU kernel, interpreted, against plain attention: forward and backward, on every mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpo_jax.errors import InputError
from tpo_jax.parallel.attention import (
    MOST_QUERIES,
    Keys,
    continuation_attention,
    fused_attention,
    prefix_attention,
)
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.parallel.splash import splash_attention, zigzag_positions

H, K, C = 4, 2, 128


def inputs(B, length, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    q, k, v, g = (
        jax.random.normal(key, (B, length, heads, C))
        for key, heads in zip(keys, (H, K, K, H), strict=True)
    )
    lengths = np.random.default_rng(seed).integers(length // 2, length, (B, 1))
    lengths[0] = length
    mask = jnp.arange(length) < lengths
    # Nothing reads padding, so nothing flows back from it.
    return q * C**-0.5, k, v, mask, g * mask[..., None, None]


def value_and_gradients(attention, q, k, v, mask, g):
    out, backward = jax.vjp(lambda q, k, v: attention(q, k, v, mask), q, k, v)
    return jnp.where(mask[..., None, None], out, 0), *backward(g)


@functools.cache
def expected(B, length):
    oracle = functools.partial(prefix_attention, back_end="xla")
    return jax.device_get(value_and_gradients(oracle, *inputs(B, length)))


# data, fsdp, tensor, context
@pytest.mark.parametrize(
    ("sizes", "length", "zigzag"),
    [
        ((1, 1, 1, 1), 384, False),
        ((1, 2, 1, 1), 640, False),
        ((1, 1, 1, 2), 1536, False),
        ((1, 1, 1, 2), 1536, True),
        ((1, 2, 2, 2), 512, True),
        ((1, 1, 1, 4), 1024, True),
    ],
)
def test_kernel_equals_plain_attention(sizes, length, zigzag):
    order = zigzag_positions(length, sizes[-1]) if zigzag else np.arange(length)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: math.prod(sizes)])
    kernel = functools.partial(splash_attention, zigzag=zigzag, interpret=True)
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(value_and_gradients, kernel))(
            *(x[:, order] for x in inputs(2, length))
        )
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected(2, length), strict=True):
        b = b[:, order]
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


def test_zigzag_of_plain_attention():
    length, mesh = (
        64,
        make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 4}, jax.devices()[:4]),
    )
    order = zigzag_positions(length, 4)
    attention = functools.partial(prefix_attention, back_end="xla", zigzag=True)
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(value_and_gradients, attention))(
            *(x[:, order] for x in inputs(2, length))
        )
    for a, b in zip(found, expected(2, length), strict=True):
        np.testing.assert_allclose(a, b[:, order], atol=1e-5)


def test_many_queries_run_in_parts():
    """Each query gets the same values as in one piece, and the memory for scores does not grow."""
    B, M, R, P, H, K, C = 1, 3, 2 * MOST_QUERIES // 3 // 16 * 16, 8, 2, 1, 4
    keys = jax.random.split(jax.random.key(0), 6)
    q = jax.random.normal(keys[0], (B, M, R, H, C))
    k, v = (jax.random.normal(key, (B, P, K, C)) for key in keys[1:3])
    own = [jax.random.normal(key, (B, M, R, K, C)) for key in keys[3:5]]
    mask = jnp.arange(P)[None] < P - 2
    own_mask = jnp.tril(jnp.ones((R, R), bool)) & jax.random.bernoulli(keys[5], 0.9, (B, M, 1, R))
    prefix = Keys(k, v, mask)
    found = continuation_attention(q, prefix, Keys(*own, own_mask))
    halves = [
        continuation_attention(q[:, :, part], prefix, Keys(*own, own_mask[:, :, part]))
        for part in (slice(0, R // 2), slice(R // 2, R))
    ]
    np.testing.assert_allclose(found, jnp.concatenate(halves, axis=2), atol=1e-6)
    program = jax.jit(continuation_attention).lower(q, prefix, Keys(*own, own_mask)).as_text()
    assert "while" in program and f"{M}x{K}x{H}x{R}x{R}xf32" not in program


def test_attention_by_lengths_equals_plain_attention():
    """The call that cuDNN gets, computed by XLA."""
    fused = functools.partial(fused_attention, zigzag=False, implementation="xla")
    found = jax.jit(functools.partial(value_and_gradients, fused))(*inputs(3, 192))
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected(3, 192), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


def test_cudnn_needs_whole_prefixes():
    q, k, v, mask, _ = inputs(1, 128)
    with pytest.raises(InputError, match="mesh.context must be 1"):
        prefix_attention(q, k, v, mask, back_end="cudnn", zigzag=True)


@pytest.mark.parametrize("chips", [1, 2, 8])
def test_zigzag_is_a_permutation_with_equal_work(chips):
    shares = zigzag_positions(64, chips).reshape(chips, -1)
    assert sorted(shares.ravel()) == list(range(64))
    assert len({int(share.sum()) for share in shares}) == 1


def test_a_prefix_that_does_not_divide_is_named():
    q, k, v, mask, _ = inputs(1, 200)
    with pytest.raises(InputError, match="nearest legal values are 128 and 256"):
        splash_attention(q, k, v, mask, zigzag=False)
    with pytest.raises(InputError, match="192 and 208"):
        zigzag_positions(200, 8)
