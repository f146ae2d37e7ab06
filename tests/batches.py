"""Random batches with everything that can go wrong: padding, different lengths, one-token answers,
absent pairs.
"""

import dataclasses

import numpy as np

from tpo_jax import families
from tpo_jax.data.collate import Visual, collate, visual_sizes
from tpo_jax.data.rows import Row
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import DecoderConfig, ModelConfig

# Small enough for seconds, odd enough to notice a mistake: grouped queries, a head size that is no
# power of two.
SMALL = dataclasses.replace(
    families.preset("tiny_llava_video"),
    tower=TowerConfig("siglip", 20, 4, width=24, layers=2, heads=2, mlp_width=40),
    decoder=DecoderConfig(
        vocab_size=96,
        width=48,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=12,
        mlp_width=64,
        rope_theta=1e4,
    ),
    max_length=256,
)


def one_row(config: ModelConfig, visual: Visual, row: Row | None, prefix: int = 0) -> Batch:
    """Return a batch of one row, its texts without padding; None: empty, with `P = prefix`."""
    frames, images = visual_sizes([visual])
    Q, A, R = row.input_ids.shape if row else (1, 1, 1)
    shape = BatchShape(
        rows=1,
        prefix=row.prefix_ids.size if row else prefix,
        questions=Q,
        answers=A,
        response=R,
        frames=frames,
        frame_shape=config.frame_shape,
        images=images,
        prefix_labels=row is not None and row.target_at is not None,
    )
    return collate(config, [row], [visual], shape)


def random_batch(
    model: ModelConfig = SMALL,
    *,
    B=4,
    Q=1,
    A=2,
    F=3,
    P=40,
    R=8,
    seed=0,
    absent=False,
    within=False,
) -> Batch:
    """Return a batch with random contents.

    With `absent`, the last pair of the last row is missing, as in the last batch of an epoch; with
    `within`, some labels lie in the prefix, as the original trainer's.
    """
    rng = np.random.default_rng(seed)
    S, W, n = model.tower.image_size, model.decoder.vocab_size, model.visual_tokens(F)
    prefix_ids = np.zeros((B, P), np.int32)
    prefix_mask = np.zeros((B, P), bool)
    visual_index = np.full((B, P), -1, np.int32)
    for row in range(B):
        head, length = rng.integers(1, 4), rng.integers(n + 6, P + 1)
        prefix_mask[row, :length] = True
        prefix_ids[row, :length] = rng.integers(1, W, length)
        visual_index[row, head : head + n] = np.arange(n)
        prefix_ids[row, head : head + n] = 0
    ids = rng.integers(1, W, (B, Q, A, R + 1)).astype(np.int32)
    lengths = rng.integers(2, R + 1, (B, Q, A, 1))
    lengths[0, 0, 0] = 1
    input_mask = np.arange(R) < lengths
    start = np.minimum(rng.integers(0, 3, (B, Q, 1, 1)), lengths - 1)  # questions are not labelled
    target_mask = input_mask & (np.arange(R) >= start)
    pair_index = np.arange(B * Q, dtype=np.int32).reshape(B, Q)
    if absent:
        target_mask[-1, -1], pair_index[-1, -1] = False, -1
    target_at = None
    if within:
        places = rng.integers(0, prefix_mask.sum(-1).reshape(B, 1, 1, 1), input_mask.shape)
        target_at = np.where(input_mask, -1, places).astype(np.int32)
        target_mask |= ~input_mask & (rng.random(input_mask.shape) < 0.8)
    return Batch(
        target_at=target_at,
        frames=rng.integers(0, 256, (B, F, S, S, 3)).astype(np.uint8),
        prefix_ids=prefix_ids,
        prefix_mask=prefix_mask,
        visual_index=visual_index,
        input_ids=np.where(input_mask, ids[..., :-1], 0),
        input_mask=input_mask,
        target_ids=np.where(input_mask | within, ids[..., 1:], 0),
        target_mask=target_mask,
        pair_index=pair_index,
        reference_logps=rng.normal(-20, 3, (B, Q, 2)).astype(np.float32),
    )
