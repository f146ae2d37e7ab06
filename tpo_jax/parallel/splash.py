"""Causal attention of the prefix as a Pallas kernel: never more than a block of scores in memory.

The kernels are JAX's splash attention. Which blocks are unmasked is computed on the device from the
positions of the queries: JAX's own mask objects are built on the host, which takes minutes at
400,000 tokens, and every chip may hold any set of positions this way.

Over the `context` axis the prefix lies in zig-zag order: chip `i` of `n` holds the chunks `i` and
`2n - 1 - i` of `2n`, so that every chip has the same number of causal blocks. Queries stay where
they are; keys and values are gathered.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from tpo_jax.errors import InputError
from tpo_jax.parallel.sharding import ROWS, axis_size

LANES = 128  # block sizes are multiples of it
_QUERIES, _KEYS, _KEYS_COMPUTE = 512, 1024, 512  # largest blocks; 1024 * 1024 scores overflow VMEM


def zigzag_positions(length: int, chips: int) -> np.ndarray:
    """Return int32 `[length]`, the position at each place of the zig-zag order.

    Raises:
        InputError: `length` is not a multiple of `2 * chips`.
    """
    if length % (2 * chips):
        raise InputError(
            f"a prefix of {length} tokens cannot be split in zig-zag order over context={chips}; "
            f"{_nearest(length, 2 * chips)} (data.max_prefix, data.prefix_multiple)"
        )
    chunks = np.arange(length, dtype=np.int32).reshape(2 * chips, -1)
    pairs = [np.concatenate([chunks[i], chunks[2 * chips - 1 - i]]) for i in range(chips)]
    return np.concatenate(pairs)


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    zigzag: bool,
    interpret: bool = False,
) -> jax.Array:
    """Compute `attention.prefix_attention`; dq and dk/dv come from separate kernels.

    On the current mesh rows lie over `data` and `fsdp`, heads over `tensor`, positions over
    `context`.

    Args:
        q: `[B, P, H, C]`, scaled and rotated.
        k: `[B, P, K, C]`, rotated; v likewise.
        mask: bool `[B, P]`; real tokens attend to real tokens only, padding to padding.
        zigzag: positions are in the order of `zigzag_positions`.
        interpret: run on any device, slowly.

    Raises:
        InputError: the prefix does not divide into blocks on every chip.
    """
    chips = axis_size("context")
    length, unit = q.shape[1], LANES * chips * (2 if zigzag else 1)
    if length % unit:
        raise InputError(
            f"splash attention needs a prefix that is a multiple of {unit} tokens (blocks of "
            f"{LANES}, context={chips}), not {length}; {_nearest(length, unit)} "
            "(data.max_prefix, data.prefix_multiple)"
        )
    if zigzag:
        positions = zigzag_positions(length, chips)
    else:
        positions = np.arange(length, dtype=np.int32)
    local = functools.partial(_local, zigzag=zigzag, interpret=interpret)
    if jax.sharding.get_abstract_mesh().empty:
        return local(q, k, v, mask, positions)
    heads = P(ROWS, "context", "tensor", None)
    return jax.shard_map(
        local,
        in_specs=(heads, heads, heads, P(ROWS, "context"), P("context")),
        out_specs=heads,
        check_vma=False,  # the kernels do not say over which axes their outputs vary
    )(q, k, v, mask, positions)


def _local(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    positions: jax.Array,
    *,
    zigzag: bool,
    interpret: bool,
) -> jax.Array:
    """Compute the attention of one chip's queries to all keys."""
    segments = mask.astype(jnp.int32)
    kv_segments = segments
    if axis_size("context") > 1:
        gather = functools.partial(jax.lax.all_gather, axis_name="context", axis=1, tiled=True)
        natural = _natural if zigzag else lambda x, _: x
        chips = axis_size("context")
        k, v, kv_segments = (natural(gather(x), chips) for x in (k, v, segments))
    kernel = _kernel(positions, k.shape[1], zigzag, interpret)
    out = jax.vmap(lambda q, k, v, a, b: kernel(q, k, v, splash.SegmentIds(a, b)))(
        *(x.swapaxes(1, 2) for x in (q, k, v)), segments, kv_segments
    )
    return out.swapaxes(1, 2)


def _kernel(
    positions: jax.Array, keys: int, zigzag: bool, interpret: bool
) -> splash.SplashAttentionKernel:
    """Build the kernel for queries at `positions` (int32 `[p]`, ascending within a chunk)."""
    chunk = positions.shape[0] // (2 if zigzag else 1)
    bq, bkv = _block(chunk, _QUERIES), _block(keys, _KEYS)
    sizes = splash.BlockSizes(
        block_q=bq,
        block_kv=bkv,
        block_kv_compute=_block(bkv, _KEYS_COMPUTE),
        block_q_dkv=bq,
        block_kv_dkv=bkv,
        block_kv_dkv_compute=_block(bkv, _KEYS_COMPUTE),
        block_q_dq=bq,
        block_kv_dq=_block(bkv, _KEYS_COMPUTE),
    )
    positions = jnp.asarray(positions)
    last = positions.reshape(-1, bq).max(axis=1)  # of every block of queries

    def info(bkv: int, by_keys: bool) -> MaskInfo:
        first = jnp.arange(0, keys, bkv, dtype=jnp.int32)  # of every block of keys
        unmasked = last[:, None] >= first[None, :]
        # A masked block names the block already in memory, so that nothing is fetched.
        if by_keys:  # the grid runs over queries: masked blocks come first
            fetch = jnp.maximum(jnp.arange(len(last))[:, None], jnp.argmax(unmasked, axis=0)[None])
        else:
            fetch = jnp.minimum(jnp.arange(len(first))[None, :], last[:, None] // bkv)
        return MaskInfo(
            data_next=fetch[None].astype(jnp.int32),
            mask_next=None,
            block_mask=unmasked[None].astype(jnp.int32),
            partial_mask_blocks=None,
            q_sequence=positions,
        )

    return splash.SplashAttentionKernel(
        info(sizes.block_kv, False),
        info(sizes.block_kv_dq, False),
        info(sizes.block_kv_dkv, True),
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name="attention",
        mask_function=_causal,
        interpret=interpret,
    )


def _causal(query: jax.Array, key: jax.Array) -> jax.Array:
    return query >= key


def _natural(x: jax.Array, chips: int) -> jax.Array:
    """Reorder `[B, P, ...]` from zig-zag to natural order."""
    chunks = x.reshape(x.shape[0], chips, 2, -1, *x.shape[2:])
    return jnp.concatenate([chunks[:, :, 0], chunks[:, ::-1, 1]], axis=1).reshape(x.shape)


def _block(length: int, largest: int) -> int:
    """Return the largest multiple of `LANES` up to `largest` that divides `length`."""
    return max(n for n in range(LANES, min(length, largest) + 1, LANES) if length % n == 0)


def _nearest(length: int, unit: int) -> str:
    below, above = length // unit * unit, -(-length // unit) * unit
    return f"the nearest legal values are {below} and {above}" if below else f"use {above}"
