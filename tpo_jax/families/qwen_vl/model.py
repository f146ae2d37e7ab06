"""Qwen3-VL and Qwen2.5-VL: tower and mergers before a decoder with positions on three axes.

The decoder of Qwen3-VL takes visual features at several layers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from tpo_jax.families.qwen_vl.config import MERGE, QwenVLConfig
from tpo_jax.families.qwen_vl.processing import TIME_BYTES
from tpo_jax.families.qwen_vl.vision import Merger, Tower
from tpo_jax.models.batch import Array, Batch
from tpo_jax.models.blocks import Projections
from tpo_jax.models.decoder import Decoder, PrefixStream
from tpo_jax.models.frames import map_frames
from tpo_jax.models.vlm import VideoLanguageModel
from tpo_jax.parallel.sharding import ROWS, WITHIN_ROW, constrain

_PATCHES_AT_ONCE = 6144  # per row and chip


def grids_of(frames: Array) -> jax.Array:
    """Return rows and columns of patches, int32 `[..., 2]`, of pairs of frames uint8
    `[..., 1 + N, pixels]`, whose headers `processing.preprocess` wrote.
    """
    low, high = (frames[..., 0, i:4:2].astype(jnp.int32) for i in (0, 1))
    return low + 256 * high


def times_of(frames: Array) -> jax.Array:
    """Return the positions in time, int32 `[...]`, from the headers of pairs of frames."""
    parts = [frames[..., 0, i].astype(jnp.int32) << 8 * k for k, i in enumerate(TIME_BYTES)]
    return sum(parts[1:], parts[0])


def positions_of(
    mask: Array, place: Array, grids: Array, times: Array, tokens: int, after_times: bool
) -> tuple[Array, Array]:
    """Return the positions of prefix tokens in time, height and width, and the one after them.

    Each text token's position is one more than the last. Frames without text between them share a
    start position; their tokens add to it the frame's time, their row and their column. Text after
    frames continues from the start plus the longer side of a frame in tokens, whatever the times
    (`get_rope_index` in `modeling_qwen3_vl.py` and `modeling_qwen2_5_vl.py` of `transformers` 5.24)
    or, with `after_times`, after the largest position of any axis (as it was before 5.3).

    Args:
        mask: bool `[B, P]`, real tokens.
        place: int `[B, P]`, `frame * V + token` of visual tokens; -1 elsewhere.
        grids: int32 `[B, F, 2]`, rows and columns of patches.
        times: int32 `[B, F]`, of frames since the first one.
        tokens: V.
        after_times: see above.

    Returns:
        int32 `[B, P, 3]` and int32 `[B]`.
    """
    if not grids.shape[1]:
        grids = jnp.zeros((len(grids), 1, 2), jnp.int32)
        times = grids[..., 0]
    visual, place = place >= 0, jnp.maximum(place, 0)
    frame, token = place // tokens, place % tokens
    rows, columns, time = (
        jnp.take_along_axis(x, frame, axis=1)
        for x in (grids[..., 0] // MERGE, grids[..., 1] // MERGE, times)
    )
    last = visual & ~jnp.pad(visual[:, 1:], ((0, 0), (0, 1)))
    taken = jnp.maximum(rows, columns)
    if after_times:
        taken = jnp.maximum(taken, time + 1)  # the last frame has the latest time
    step = jnp.where(visual, jnp.where(last, taken, 0), mask)
    after = jnp.cumsum(step, axis=1, dtype=jnp.int32)
    start = after - step
    across = jnp.maximum(columns, 1)
    inner = jnp.stack([time, token // across, token % across], axis=-1)
    positions = start[..., None] + jnp.where(visual[..., None], inner, 0)
    return jnp.where(mask[..., None], positions, 0), after[:, -1]


class QwenVL(VideoLanguageModel):
    """Qwen3-VL or Qwen2.5-VL, by config."""

    config: QwenVLConfig

    def __init__(self, config: QwenVLConfig, rngs: nnx.Rngs, projections: Projections) -> None:
        self.config = config
        tower, outputs = config.tower, config.decoder.width
        self.tower = Tower(tower, rngs)
        self.projector = Merger(tower, outputs, rngs)
        if tower.deepstack:
            self.deepstack = nnx.vmap(lambda r: Merger(tower, outputs, r, joined=True))(
                rngs.split(len(tower.deepstack))
            )
        self.decoder = Decoder(config.decoder, rngs, projections)

    def encode(self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none") -> jax.Array:
        """Encode the frames or images of a batch; see `VideoLanguageModel.encode`."""
        return self.features(batch, freeze_tower=freeze_tower, remat=remat)[0]

    def encode_frames(
        self, frames: Array, *, freeze_tower: bool = False, remat: str = "none"
    ) -> jax.Array:
        """Encode pairs of frames uint8 `[B, F, 1 + N, pixels]` to visual tokens `[B, F * V, D]`."""
        return self._levels(frames, freeze_tower, remat)[0]

    def features(
        self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none"
    ) -> tuple[jax.Array, ...]:
        """Encode a batch to visual tokens and DeepStack features, `[B, n, D]` each."""
        if not batch.frames.shape[1]:  # text alone
            dtype = self.decoder.norm.scale[...].dtype
            nothing = jnp.zeros((len(batch.frames), 1, self.config.decoder.width), dtype)
            return (nothing,) * (1 + len(self.config.tower.deepstack))
        levels = self._levels(batch.frames, freeze_tower, remat)
        if batch.patch_index is None:
            return levels
        index = jnp.maximum(batch.patch_index[..., :1] - 1, 0)
        return tuple(
            constrain(jnp.take_along_axis(x, index, axis=1), ROWS, None, WITHIN_ROW) for x in levels
        )

    def prefix(
        self, batch: Batch, *, freeze_tower: bool = False, remat: str = "none"
    ) -> PrefixStream:
        """Encode and embed the prefixes of a batch, with positions in time, height and width."""
        stream = super().prefix(batch, freeze_tower=freeze_tower, remat=remat)
        place = batch.visual_index
        if batch.patch_index is not None:
            own = jnp.take_along_axis(batch.patch_index[..., 0], jnp.maximum(place, 0), axis=1)
            place = jnp.where(place >= 0, own - 1, -1)
        frames, config = batch.frames, self.config
        positions, end = positions_of(
            batch.prefix_mask,
            place,
            grids_of(frames),
            times_of(frames),
            config.frame_tokens,
            config.text_after_times,
        )
        return stream._replace(positions=positions, end=end)

    def _levels(self, frames: Array, freeze_tower: bool, remat: str) -> tuple[jax.Array, ...]:
        """Return the tokens of frames and of their DeepStack levels, `[B, F * V, D]` each."""

        def encode(frames: jax.Array) -> jax.Array:
            outputs = self.tower(
                frames[:, 1:], grids_of(frames), remat=remat != "none" and not freeze_tower
            )
            outputs = jax.lax.stop_gradient(outputs) if freeze_tower else outputs
            return (self.merged if remat == "none" else jax.checkpoint(self.merged))(outputs)

        # The attention scores of one pair of 3,072 patches take 0.6 GB in float32.
        x = map_frames(frames, encode, max(1, _PATCHES_AT_ONCE // self.config.patches))
        levels = 1 + len(self.config.tower.deepstack)
        return tuple(
            constrain(part, ROWS, None, WITHIN_ROW) for part in jnp.split(x, levels, axis=-1)
        )

    def merged(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """Merge the tower's outputs into visual tokens and DeepStack features, concatenated:
        `[m, V, (1 + levels) * D]`.
        """
        last, *levels = outputs
        merged = [self.projector(last)]
        if levels:
            definition, weights = nnx.split(self.deepstack)
            for i, x in enumerate(levels):
                own = jax.tree.map(lambda w, i=i: w[i], weights)
                merged.append(nnx.merge(definition, own)(x))
        return jnp.concatenate(merged, axis=-1)
