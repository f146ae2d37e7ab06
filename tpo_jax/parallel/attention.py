"""Attention of the two streams of a row: `prefix_attention` and `continuation_attention`.

Queries come grouped, `[..., H, C]` against `K` key/value heads, `H = K * G`; query head `h` reads
key/value head `h // G`, as Qwen2 does. Softmax is in float32.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tpo_jax.errors import InputError
from tpo_jax.parallel.sharding import axis_size, platform
from tpo_jax.parallel.splash import LANES, splash_attention, zigzag_positions

BACK_ENDS = ("auto", "xla", "splash", "cudnn")

# Most queries of a row whose scores are in memory at once: 2.3 GB with 28 heads, 20,000 keys.
MOST_QUERIES = 1024

_MASKED = -1e30  # finite, so that a query without a visible key gives no NaN


def prefix_multiple(mesh: jax.sharding.Mesh | None, zigzag: bool = False) -> int:
    """Return the multiple to round prefix lengths up to.

    Few programs are compiled then, and on a TPU the back end `auto` can use the splash kernel.

    Args:
        mesh: None: one chip.
        zigzag: whether `Decoder.row` computes the rows: each chip of a `context` axis then holds
            two chunks of the prefix, but one chunk of a prefix that fills a cache.
    """
    chips = 1 if mesh is None else mesh.shape["context"]
    chunks = 2 * chips if zigzag and chips > 1 else chips
    return chunks * (LANES if platform(mesh) == "tpu" else 64)


def prefix_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    back_end: str = "auto",
    zigzag: bool = False,
) -> jax.Array:
    """Compute causal self-attention of the prefix.

    Args:
        q: `[B, P, H, C]`, scaled and rotated.
        k: `[B, P, K, C]`, rotated.
        v: `[B, P, K, C]`.
        mask: bool `[B, P]`, real tokens.
        back_end: `xla` runs anywhere and holds all scores in memory; `splash` is a kernel for TPUs,
            `cudnn` one for NVIDIA GPUs; `auto` is the device's kernel where it supports these
            shapes.
        zigzag: positions are in the order of `splash.zigzag_positions` over the `context` axis.

    Returns:
        `[B, P, H, C]` in the dtype of `v`, named `attention` for `jax.checkpoint`; at padding
        the values are finite and meaningless.
    """
    if back_end == "auto":
        device = platform()
        back_end = "xla"
        if device == "tpu" and q.shape[1] % LANES == 0:
            back_end = "splash"
        elif device == "gpu" and q.dtype != jnp.float32 and q.shape[-1] <= 128:
            back_end = "cudnn" if axis_size("context") == 1 else "xla"
    if back_end == "splash":
        return splash_attention(q, k, v, mask, zigzag=zigzag)
    if back_end == "cudnn":
        return fused_attention(q, k, v, mask, zigzag=zigzag, implementation="cudnn")
    B, P, H, C = q.shape
    K = k.shape[2]
    q = q.reshape(B, P, K, H // K, C)
    logits = jnp.einsum("bqkgc,btkc->bkgqt", q, k, preferred_element_type=jnp.float32)
    visible = jnp.tril(jnp.ones((P, P), bool))
    if zigzag:
        positions = jnp.asarray(zigzag_positions(P, axis_size("context")))
        visible = positions[:, None] >= positions[None, :]
    visible = visible & mask[:, None, None, None, :]
    weights = jax.nn.softmax(jnp.where(visible, logits, _MASKED), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgqt,btkc->bqkgc", weights, v).reshape(B, P, H, C)
    return checkpoint_name(out, "attention")


def fused_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    zigzag: bool,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    """Compute `prefix_attention` with `jax.nn.dot_product_attention`; padding must be on the right.

    Args:
        q: `[B, P, H, C]`, scaled and rotated.
        k: `[B, P, K, C]`, rotated; v likewise.
        mask: bool `[B, P]`.
        zigzag: must be false.
        implementation: `cudnn`, or `xla` for comparison.

    Raises:
        InputError: the prefix is split over chips (`zigzag`).
    """
    if zigzag:
        raise InputError(
            f"compute.attention=cudnn needs whole prefixes: mesh.context must be 1, not "
            f"{axis_size('context')}; use fsdp and tensor, or compute.attention=xla"
        )
    lengths = mask.sum(axis=1, dtype=jnp.int32)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1.0,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return checkpoint_name(out, "attention")


class Keys(NamedTuple):
    """What queries attend to: keys, values, and which of them are visible."""

    k: jax.Array
    v: jax.Array
    mask: jax.Array


def continuation_attention(q: jax.Array, prefix: Keys, own: Keys) -> jax.Array:
    """Compute attention of a row's `M` continuations to the shared prefix and to themselves.

    The two sets of keys are never concatenated, because the prefix may be split over the mesh; a
    common maximum joins their softmax. Where `M * R` exceeds `MOST_QUERIES`, parts of R run one
    after the other, so that the scores of long prompts (subtitles) need no more memory.

    Args:
        q: `[B, M, R, H, C]`, scaled and rotated.
        prefix: keys and values `[B, P, K, C]`, mask bool `[B, P]`.
        own: keys and values `[B, M, T, K, C]`, mask bool `[B, M, R, T]`: causal structure and
            padding. T is R in training, the cache length in decoding.

    Returns:
        `[B, M, R, H, C]` in the dtype of the values.
    """
    B, M, R, H, C = q.shape
    size = max(n for n in range(1, R + 1) if R % n == 0 and (n == 1 or M * n <= MOST_QUERIES))
    if size == R:
        return _all_queries(q, prefix, own)

    def part(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        q, mask = inputs
        return _all_queries(q, prefix, own._replace(mask=mask))

    queries = jnp.moveaxis(q.reshape(B, M, R // size, size, H, C), 2, 0)
    masks = jnp.moveaxis(own.mask.reshape(B, M, R // size, size, -1), 2, 0)
    return jnp.moveaxis(jax.lax.map(part, (queries, masks)), 0, 2).reshape(B, M, R, H, C)


def _all_queries(q: jax.Array, prefix: Keys, own: Keys) -> jax.Array:
    B, M, R, H, C = q.shape
    K = prefix.k.shape[2]
    q = q.reshape(B, M, R, K, H // K, C)
    to_prefix = jnp.einsum("bmrkgc,btkc->bmkgrt", q, prefix.k, preferred_element_type=jnp.float32)
    to_own = jnp.einsum("bmrkgc,bmtkc->bmkgrt", q, own.k, preferred_element_type=jnp.float32)
    to_prefix = jnp.where(prefix.mask[:, None, None, None, None, :], to_prefix, _MASKED)
    to_own = jnp.where(own.mask[:, :, None, None], to_own, _MASKED)

    # The maximum cancels in the quotient, so no gradient flows through it.
    top = jax.lax.stop_gradient(
        jnp.maximum(to_prefix.max(axis=-1, keepdims=True), to_own.max(axis=-1, keepdims=True))
    )
    to_prefix, to_own = jnp.exp(to_prefix - top), jnp.exp(to_own - top)
    total = to_prefix.sum(axis=-1) + to_own.sum(axis=-1)
    out = jnp.einsum("bmkgrt,btkc->bmkgrc", to_prefix.astype(prefix.v.dtype), prefix.v)
    out = out.astype(jnp.float32) + jnp.einsum(
        "bmkgrt,bmtkc->bmkgrc", to_own.astype(own.v.dtype), own.v
    )
    out = (out / total[..., None]).astype(own.v.dtype)
    return jnp.moveaxis(out, 4, 2).reshape(B, M, R, H, C)
