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

C = 128


def inputs(B, length, H=4, K=2):
    draws = np.random.default_rng(0)
    q, k, v, g = (
        draws.standard_normal((B, length, heads, C), np.float32) for heads in (H, K, K, H)
    )
    lengths = draws.integers(length // 2, length, (B, 1))
    lengths[0] = length
    mask = np.arange(length) < lengths
    # Nothing reads padding, so nothing flows back from it.
    return q * C**-0.5, k, v, mask, g * mask[..., None, None]


def value_and_gradients(attention, q, k, v, mask, g):
    out, backward = jax.vjp(lambda q, k, v: attention(q, k, v, mask), q, k, v)
    return jnp.where(mask[..., None, None], out, 0), *backward(g)


def jitted(attention):
    return jax.jit(functools.partial(value_and_gradients, attention))


@functools.cache
def expected(B, length, *heads):
    oracle = functools.partial(prefix_attention, back_end="xla")
    return jax.device_get(jitted(oracle)(*inputs(B, length, *heads)))


# data, fsdp, tensor, context. Five blocks of queries; two blocks of keys, which are wholly masked
# for the first of two chips where the order is natural; one block of two products.
@pytest.mark.parametrize(
    ("sizes", "length", "heads", "zigzag"),
    [
        ((1, 1, 1, 1), 640, (4, 2), False),
        ((1, 1, 1, 2), 1536, (2, 1), False),
        ((1, 1, 1, 2), 1536, (2, 1), True),
        ((1, 2, 2, 2), 512, (4, 2), True),
        ((1, 1, 1, 4), 1024, (2, 1), True),
    ],
)
def test_kernel_equals_plain_attention(sizes, length, heads, zigzag):
    order = zigzag_positions(length, sizes[-1]) if zigzag else np.arange(length)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: math.prod(sizes)])
    kernel = functools.partial(splash_attention, zigzag=zigzag, interpret=True)
    with jax.set_mesh(mesh):
        found = jitted(kernel)(*(x[:, order] for x in inputs(2, length, *heads)))
    wanted = expected(2, length, *heads)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
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
        found = jitted(attention)(*(x[:, order] for x in inputs(2, length)))
    for a, b in zip(found, expected(2, length), strict=True):
        np.testing.assert_allclose(a, b[:, order], atol=1e-5)


def test_many_queries_run_in_parts():
    """Each query gets the same values as in one piece, and the memory for scores does not grow."""
    B, M, R, P, H, K, C = 1, 3, 2 * MOST_QUERIES // 3 // 16 * 16, 8, 2, 1, 4
    draws = np.random.default_rng(0)
    q = draws.standard_normal((B, M, R, H, C), np.float32)
    k, v = draws.standard_normal((2, B, P, K, C), np.float32)
    own = draws.standard_normal((2, B, M, R, K, C), np.float32)
    own_mask = np.tril(np.ones((R, R), bool)) & (draws.random((B, M, 1, R)) < 0.9)
    prefix, attention = Keys(k, v, np.arange(P)[None] < P - 2), jax.jit(continuation_attention)
    found = attention(q, prefix, Keys(*own, own_mask))
    halves = [
        attention(q[:, :, part], prefix, Keys(*own, own_mask[:, :, part]))
        for part in (slice(0, R // 2), slice(R // 2, R))
    ]
    np.testing.assert_allclose(found, np.concatenate(halves, axis=2), atol=1e-6)
    program = attention.lower(q, prefix, Keys(*own, own_mask)).as_text()
    assert "while" in program and f"{M}x{K}x{H}x{R}x{R}xf32" not in program


def test_attention_by_lengths_equals_plain_attention():
    """The call that cuDNN gets, computed by XLA."""
    fused = functools.partial(fused_attention, zigzag=False, implementation="xla")
    found = jitted(fused)(*inputs(3, 192))
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected(3, 192), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


def test_cudnn_needs_whole_prefixes():
    q, k, v, mask, _ = inputs(1, 128)
    with pytest.raises(InputError, match="mesh.context must be 1"):
        prefix_attention(q, k, v, mask, back_end="cudnn", zigzag=True)


@pytest.mark.parametrize(("context", "kernel"), [(1, True), (2, False)])
def test_auto_uses_cudnn_where_prefixes_are_whole(context, kernel, monkeypatch):
    chosen = []
    where = "tpo_jax.parallel.attention."
    monkeypatch.setattr(f"{where}platform", lambda: "gpu")
    monkeypatch.setattr(f"{where}fused_attention", lambda q, *_, **__: chosen.append(1) or q)
    q, k, v, mask, _ = inputs(1, 128)
    sizes = dict.fromkeys(AXES, 1) | {"context": context}
    with jax.set_mesh(make_mesh(sizes, jax.devices()[:context])):
        jax.eval_shape(prefix_attention, *(x.astype(jnp.bfloat16) for x in (q, k, v)), mask)
    assert bool(chosen) == kernel


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
