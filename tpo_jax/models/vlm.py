"""The video language model: tower, projector, frame pooling, newline tokens, decoder.

Order of the visual path is the originals': tower, projector on every patch, then pooling
(`reference/models.md` sections 1.3 and 2.3), then newline tokens (2.4).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tpo_jax.models.config import ModelConfig
from tpo_jax.models.lora import adapters_of
from tpo_jax.models.qwen2 import Decoder
from tpo_jax.models.vision import Tower
from tpo_jax.parallel.sharding import (
    ALL,
    ROWS,
    WEIGHTS,
    WITHIN_ROW,
    axis_size,
    constrain,
    vocabulary_axes,
)

_FRAMES_AT_ONCE = 8  # of a row and chip, through the tower


class Projector(nnx.Module):
    """Linear, exact GELU, linear; frames lie over all chips."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(inputs, outputs, rngs=rngs)
        self.fc2 = nnx.Linear(outputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = constrain(jax.nn.gelu(self.fc1(x), approximate=False), ALL, None, None)
        return constrain(self.fc2(x), ALL, None, None)


def _bilinear_matrix(source: int, target: int) -> np.ndarray:
    """`[target, source]` weights of a bilinear resize with half-pixel centres and no
    antialiasing.
    """
    at = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    low = np.floor(at).astype(int)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] += 1 - (at - low)
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += at - low
    return matrix


def pool(x: jax.Array, mode: str) -> jax.Array:
    """2x2 pooling of every frame's grid.

    Args:
        x: `[n, g, g, D]`.
        mode: `average`, `max` (both drop an odd last row and column) or `bilinear` (rounds the
            side up).

    Returns:
        `[n, g', g', D]`.
    """
    n, g, _, D = x.shape
    if mode == "bilinear":
        matrix = jnp.asarray(_bilinear_matrix(g, (g + 1) // 2), x.dtype)
        return jnp.einsum("ig,jh,nghd->nijd", matrix, matrix, x)
    half = g // 2
    windows = x[:, : 2 * half, : 2 * half].reshape(n, half, 2, half, 2, D)
    return windows.mean(axis=(2, 4)) if mode == "average" else windows.max(axis=(2, 4))


class VideoLanguageModel(nnx.Module):
    """LongVA or LLaVA-Video, by config; `ranks` of adapted projections of the decoder, by name."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, ranks: dict[str, int]):
        self.config = config
        D = config.decoder.width
        self.tower = Tower(config.tower, rngs)
        self.projector = Projector(config.tower.width, D, rngs)
        self.decoder = Decoder(config.decoder, rngs, ranks)
        if config.has_newline:
            init = nnx.initializers.normal(D**-0.5)
            self.newline = nnx.Param(init(rngs.params(), (D,), jnp.float32))

    def encode(self, batch: dict, *, freeze_tower: bool = False, remat: str = "none") -> jax.Array:
        """Visual tokens of a batch, `[B, n, D]`: of its videos or, where it has `patch_index`, of
        its images, with `n` as wide as that. Arguments as of `encode_frames`.
        """
        if "patch_index" not in batch:
            return self.encode_frames(batch["frames"], freeze_tower=freeze_tower, remat=remat)
        (B, n), D = batch["frames"].shape[:2], self.config.decoder.width
        dtype = self.decoder.norm.scale[...].dtype
        newline = self.newline[...] if self.config.has_newline else jnp.zeros(D)
        table = jnp.broadcast_to(newline.astype(dtype), (B, 1, D))
        if n:
            patches = self._features(batch["frames"], lambda x: x, freeze_tower, remat)
            table = jnp.concatenate([table, patches], axis=1)

        def part(k):
            taken = jnp.take_along_axis(table, batch["patch_index"][..., k, None], axis=1)
            return constrain(taken, ROWS, None, WITHIN_ROW) * batch["patch_weight"][..., k, None]

        return sum(part(k) for k in range(4)).astype(dtype)

    def encode_frames(
        self, frames: jax.Array, *, freeze_tower: bool = False, remat: str = "none"
    ) -> jax.Array:
        """uint8 `[B, F, S, S, 3]` to visual tokens `[B, F * V (+ 1), D]`.

        With `freeze_tower` no gradient enters the tower and none of its activations is kept.
        `remat` other than `none` keeps only what enters a tower layer and the projector.
        """
        x = self._features(frames, self._pooled, freeze_tower, remat)
        if self.config.newline == "one_token":
            newline = self.newline[...].astype(x.dtype)
            newline = jnp.broadcast_to(newline, (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([x, newline], axis=1)
        return x

    def _features(self, frames, finish, freeze_tower, remat):
        """uint8 `[B, F, S, S, 3]` to `[B, F * n, D]`: what `finish` makes of the projected patches
        of frames, `[m, N, D]` to `[m, n, D]`.

        A few frames are encoded at a time. The frames of a row are shared out among its chips; what
        does not divide is filled up with empty frames.
        """
        B, F = frames.shape[:2]
        chips = axis_size("tensor") * axis_size("context")
        chunks = -(-F // (chips * _FRAMES_AT_ONCE))
        size = -(-F // (chips * chunks))
        filled = chips * chunks * size
        frames = jnp.pad(frames, ((0, 0), (0, filled - F), *((0, 0),) * 3))
        frames = constrain(frames, ROWS, WITHIN_ROW, None, None, None)
        frames = frames.reshape(B, chips, chunks, size, *frames.shape[2:])
        encode = functools.partial(
            self._encode, finish=finish, freeze_tower=freeze_tower, remat=remat
        )
        if chunks == 1:
            x = encode(frames[:, :, 0])[:, :, None]
        else:
            x = jnp.moveaxis(jax.lax.map(encode, jnp.moveaxis(frames, 2, 0)), 0, 2)
        x = x.reshape(B, -1, x.shape[-1])
        return constrain(x, ROWS, None, WITHIN_ROW)[:, : F * (x.shape[1] // filled)]

    def _encode(self, frames, *, finish, freeze_tower, remat):
        """uint8 `[B, chips, m, S, S, 3]` to `[B, chips, m * n, D]`."""
        B, chips, m = frames.shape[:3]
        frames = frames.reshape(B * chips * m, *frames.shape[3:])
        frames = constrain(frames, ALL, None, None, None)

        def project(x):
            return finish(self.projector(x))

        x = self.tower(frames, remat=remat != "none" and not freeze_tower)
        x = jax.lax.stop_gradient(x) if freeze_tower else x
        x = (project if remat == "none" else jax.checkpoint(project))(x)
        return x.reshape(B, chips, -1, x.shape[-1])

    def _pooled(self, x):
        """Projected patches `[m, N, D]` to the tokens of a frame, `[m, V, D]`."""
        config, g = self.config, self.config.tower.grid
        x = pool(x.reshape(len(x), g, g, -1), config.pooling)
        g, D = x.shape[1], x.shape[-1]
        if config.has_newline:
            newline = self.newline[...].astype(x.dtype)
        if config.newline == "grid":
            x = jnp.concatenate([x, jnp.broadcast_to(newline, (len(x), g, 1, D))], axis=2)
        x = x.reshape(len(x), -1, D)
        if config.newline == "frame":
            x = jnp.concatenate([x, jnp.broadcast_to(newline, (len(x), 1, D))], axis=1)
        return x

    def embed_prefix(self, ids: jax.Array, visual: jax.Array, visual_index: jax.Array) -> jax.Array:
        """Text embeddings with the visual tokens put in their slots.

        Args:
            ids: int `[B, P]`.
            visual: `[B, n, D]` from `encode`.
            visual_index: int `[B, P]`, which visual token sits there, -1 for text.

        Returns:
            `[B, P, D]`.
        """
        # Chips look up their part of the width, for all tokens: no chip gathers the table, or all
        # visual tokens of a row.
        text = constrain(self.decoder.embed(ids), "data", None, WEIGHTS)
        text = constrain(text, ROWS, None, WITHIN_ROW)
        taken = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
        taken = constrain(taken, ROWS, None, WITHIN_ROW)
        return jnp.where(visual_index[..., None] >= 0, taken.astype(text.dtype), text)

    def hidden_states(
        self,
        batch: dict,
        *,
        remat: str = "none",
        freeze_tower: bool = False,
        attention: str = "auto",
        scan: bool = True,
    ) -> jax.Array:
        """What the head is applied to at every token of every continuation.

        Args:
            batch: see `docs/architecture.md`, "The batch".
            remat: policy name for the decoder layers.
            freeze_tower: see `encode_frames`.
            attention: back end of `prefix_attention`.
            scan: decoder layers in a loop.

        Returns:
            `[B, Q, A, R, D]`.
        """
        B, Q, A, R = batch["input_ids"].shape

        def flat(name):
            return batch[name].reshape(B, Q * A, R)

        visual = self.encode(batch, freeze_tower=freeze_tower, remat=remat)
        x = self.embed_prefix(batch["prefix_ids"], visual, batch["visual_index"])
        y = self.decoder.embed(flat("input_ids"))
        hidden = self.decoder.row(
            x,
            batch["prefix_mask"],
            y,
            flat("input_mask"),
            target_at=flat("target_at") if "target_at" in batch else None,
            remat=remat,
            back_end=attention,
            scan=scan,
        )
        return hidden.reshape(B, Q, A, R, -1)

    def gather(self, hidden: jax.Array, batch: dict, chunk: int = 0) -> jax.Array:
        """`token_logps` from `hidden_states`."""
        B, Q, A, R = batch["target_ids"].shape
        flat = hidden.reshape(B, Q * A, R, -1), batch["target_ids"].reshape(B, Q * A, R)
        logps = gather_logps(flat[0], self.decoder.head.kernel[...], flat[1], chunk)
        return jnp.where(batch["target_mask"], logps.reshape(B, Q, A, R), 0.0)

    def likeliest(self, hidden: jax.Array) -> jax.Array:
        """The likeliest next token at every position of `[..., D]`: int32 `[...]`."""
        return jnp.argmax(_logits(hidden, self.decoder.head.kernel[...]), axis=-1)

    def token_logps(self, batch: dict, *, chunk: int = 0, **how) -> jax.Array:
        """Log-probability of every labelled token of every continuation.

        Args:
            batch: see `docs/architecture.md`, "The batch".
            chunk: response positions per application of the head, 0 for all at once; must divide
                `R`.
            **how: of `hidden_states`.

        Returns:
            float32 `[B, Q, A, R]`, zero where `target_mask` is false.
        """
        return self.gather(self.hidden_states(batch, **how), batch, chunk)


@functools.cache
def _split_abstract(config: ModelConfig, ranks: tuple[tuple[str, int], ...] = ()):
    model = nnx.eval_shape(lambda: VideoLanguageModel(config, nnx.Rngs(0), dict(ranks)))
    definition, state = nnx.split(model)
    return definition, nnx.to_pure_dict(state)


def abstract_params(config: ModelConfig) -> dict:
    """Shapes and dtypes (float32) of the parameters: nested dict of `jax.ShapeDtypeStruct`."""
    return _split_abstract(config)[1]


def init_params(config: ModelConfig, seed: int) -> dict:
    """Random float32 parameters, a pure function of `seed`."""
    return nnx.to_pure_dict(nnx.split(VideoLanguageModel(config, nnx.Rngs(seed), {}))[1])


def bind(config: ModelConfig, params: dict) -> VideoLanguageModel:
    """The model over given parameters (a nested dict as `abstract_params` describes, any float
    dtype), adapters of `models.lora` among them or not.
    """
    ranks = {name: part["lora_a"].shape[-1] for name, part in adapters_of(params).items()}
    return nnx.merge(_split_abstract(config, tuple(ranks.items()))[0], params)


def cast(params: dict, dtype) -> dict:
    """Parameters in the compute dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def gather_logps(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int = 0
) -> jax.Array:
    """Log-probabilities of `targets` under `softmax(hidden @ head)`, in float32.

    Logits exist for `chunk` positions at a time, split over the vocabulary, and are recomputed in
    the backward pass.

    Args:
        hidden: `[..., R, D]`.
        head: `[D, W]`.
        targets: int `[..., R]`.
        chunk: positions at a time, 0 for all; must divide `R`.

    Returns:
        float32 `[..., R]`.
    """

    def logps(hidden, targets):
        logits = _logits(hidden, head)
        at_target = jnp.where(jnp.arange(head.shape[1]) == targets[..., None], logits, 0).sum(-1)
        return at_target - jax.nn.logsumexp(logits, axis=-1)

    return _in_chunks(logps, targets.ndim - 1, chunk, hidden, targets)


def token_divergence(
    hidden: jax.Array,
    head: jax.Array,
    reference_hidden: jax.Array,
    reference_head: jax.Array,
    chunk: int = 0,
) -> jax.Array:
    """KL(reference || policy) of the next-token distributions over the whole vocabulary.

    Args:
        hidden: `[..., R, D]` of the policy.
        head: `[D, W]` of the policy.
        reference_hidden: `[..., R, D]` of the reference.
        reference_head: `[D, W]` of the reference.
        chunk: as for `gather_logps`.

    Returns:
        float32 `[..., R]`.
    """

    def divergence(hidden, reference_hidden):
        policy = jax.nn.log_softmax(_logits(hidden, head))
        reference = jax.nn.log_softmax(_logits(reference_hidden, reference_head))
        return (jnp.exp(reference) * (reference - policy)).sum(-1)

    return _in_chunks(divergence, hidden.ndim - 2, chunk, hidden, reference_hidden)


def _logits(hidden, head):
    logits = jnp.einsum("...d,dw->...w", hidden, head, preferred_element_type=jnp.float32)
    return constrain(logits, "data", *[None] * (logits.ndim - 2), vocabulary_axes(head.shape[1]))


def _in_chunks(function, axis: int, chunk: int, *arrays: jax.Array) -> jax.Array:
    """`function` of arrays `[..., R, ...]` with positions at `axis`, `chunk` of them at a time;
    what it computes on the way is recomputed in the backward pass.
    """
    function, R = jax.checkpoint(function), arrays[0].shape[axis]
    if chunk in (0, R):
        return function(*arrays)
    if R % chunk:
        raise ValueError(f"the head's chunk of {chunk} positions does not divide R={R}")
    parts = jax.lax.map(
        lambda part: function(*part),
        [
            jnp.moveaxis(
                x.reshape(*x.shape[:axis], R // chunk, chunk, *x.shape[axis + 1 :]), axis, 0
            )
            for x in arrays
        ],
    )
    return jnp.moveaxis(parts, 0, axis).reshape(arrays[0].shape[: axis + 1])
