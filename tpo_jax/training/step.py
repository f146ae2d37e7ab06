"""The train step: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.models.batch import Array, Batch
from tpo_jax.models.blocks import remat_policy
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.lora import NO_ADAPTERS, Lora, join, scaled
from tpo_jax.models.vlm import cast, token_divergence
from tpo_jax.objectives.conditional import VIDEO, join_rows
from tpo_jax.objectives.preference import Objective, denominators, mean_log_ratios, tpo_loss
from tpo_jax.parallel.attention import BACK_ENDS
from tpo_jax.parallel.programs import built_once
from tpo_jax.training.state import TrainState

DTYPES = ("bfloat16", "float32")
METRICS = ("grad_norm", "param_norm", "pairs", "skipped")  # of a step, besides those of `tpo_loss`


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the model runs: these fields change speed and memory, results only by rounding.

    Raises:
        InputError: an unknown dtype, remat policy or attention back end, or a number out of range.
    """

    dtype: str = "bfloat16"
    remat: str = "full"
    head_chunk: int = 0  # response positions per application of the head, 0: all
    micro_batches: int = 1
    attention: str = "auto"  # of the prefix: auto, xla, splash or cudnn
    scan: bool = True  # decoder layers in a loop

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"compute.dtype={self.dtype!r} must be one of {DTYPES}")
        remat_policy(self.remat)
        if self.attention not in BACK_ENDS:
            raise InputError(f"compute.attention={self.attention!r} must be one of {BACK_ENDS}")
        if self.head_chunk < 0:
            raise InputError(f"compute.head_chunk={self.head_chunk} must not be negative")
        if self.micro_batches < 1:
            raise InputError(f"compute.micro_batches={self.micro_batches} must be above 0")


@built_once
def make_forward(
    model: ModelConfig, objective: Objective, compute: Compute, lora: Lora = NO_ADAPTERS
) -> Callable[..., dict[str, Any]]:
    """Build `forward(trainable, frozen, batch, reference)`, which returns the arguments of
    `tpo_loss` that depend on the batch; see `make_step`.
    """

    def forward(
        trainable: dict, frozen: dict, batch: Batch, reference: dict | None
    ) -> dict[str, Array | None]:
        policy = families.bind(model, cast(scaled(join(trainable, frozen), lora), compute.dtype))
        hidden = policy.hidden_states(
            batch,
            remat=compute.remat,
            freeze_tower="tower" in frozen,
            attention=compute.attention,
            scan=compute.scan,
        )
        found = {
            "token_logps": policy.gather(hidden, batch, compute.head_chunk),
            "target_mask": batch.target_mask,
            "reference": batch.reference_logps,
            "phrase_mask": batch.phrase_mask,
        }
        if objective.uses_live_reference:
            if reference is None:
                raise ValueError("objective.token_kl needs the step's argument `reference`")
            other = families.bind(model, cast(join(reference, frozen), compute.dtype))
            states = other.hidden_states(batch, attention=compute.attention)
            logps = other.gather(states, batch, compute.head_chunk)
            divergence = token_divergence(
                hidden[:, :, 0],
                policy.decoder.head_kernel,
                states[:, :, 0],
                other.decoder.head_kernel,
                compute.head_chunk,
            )
            found["reference"] = answer_sums(logps, batch, objective.uses_videos)
            found["token_kl"] = jnp.where(batch.target_mask[:, :, 0], divergence, 0.0)
        return found

    return forward


@built_once
def make_step(
    model: ModelConfig,
    objective: Objective,
    compute: Compute,
    optimizer: optax.GradientTransformation,
    lora: Lora = NO_ADAPTERS,
) -> Callable[..., tuple[TrainState, dict]]:
    """Build `step(state, batch, reference=None) -> (state, metrics)`, ready for `jax.jit` with the
    state donated.

    Gradients, their sum over micro-batches and the optimizer are float32. The loss of a micro-batch
    is its share of the whole batch's means, so accumulation equals the full batch.

    Args:
        lora: rank, scale and targets of the adapters; by default there are none.

    Returns:
        The step. Its `reference` is for an objective that runs the reference in every step instead
        of reading `Batch.reference_logps`: the initial weights of the trained parts, in the compute
        dtype, without adapters. Its metrics are float32 scalars: those of `tpo_loss`, `grad_norm`,
        `param_norm`, `pairs` and `skipped` (pairs of the batch that cannot be decoded).
    """
    forward = make_forward(model, objective, compute, lora)
    parts = compute.micro_batches, objective.rows_together

    def loss_fn(
        trainable: dict, frozen: dict, batch: Batch, totals: dict, reference: dict | None
    ) -> tuple[jax.Array, dict]:
        found = forward(trainable, frozen, batch, reference)
        return tpo_loss(objective=objective, totals=totals, **found)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def step(
        state: TrainState, batch: Batch, reference: dict | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        totals = denominators(batch.target_mask, objective.uses_videos)
        weights = state.params, state.frozen

        def log_ratios(part: Batch) -> jax.Array:
            found = forward(*weights, part, reference)
            return mean_log_ratios(
                found["token_logps"], found["target_mask"], found["reference"], totals
            )

        def micro(part: Batch) -> tuple[dict, dict]:
            (_, metrics), grads = gradient(*weights, part, totals, reference)
            return grads, metrics

        if compute.micro_batches == 1:
            grads, metrics = micro(batch)
        else:
            if objective.uses_mean_log_ratios:
                # The loss of each part depends on the whole batch: one more forward pass.
                totals["mean_log_ratios"] = sum_over_parts(log_ratios, batch, *parts)
            grads, metrics = sum_over_parts(micro, batch, *parts)

        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "pairs": totals["pairs"],
            "skipped": jnp.sum(jnp.asarray(batch.pair_index) < -1, dtype=jnp.float32),
        }
        if objective.uses_videos:
            metrics[VIDEO + "pairs"] = totals["video_pairs"]
        return TrainState(params, state.frozen, opt, state.step + 1), metrics

    return step


def answer_sums(token_logps: jax.Array, batch: Batch, videos: bool = False) -> jax.Array:
    """Sum log-probabilities float32 `[B, Q, A, R]` over each answer: float32 `[B, Q, A]`.

    For a batch with `phrase_mask` the sums over the answers' phrases follow: `[B, Q, 2 * A]`. With
    `videos` there may be pairs of two videos, and both of their rows get the sums of both.
    """
    sums = [token_logps.sum(-1)]
    if batch.phrase_mask is not None:
        sums.append(jnp.where(batch.phrase_mask, token_logps, 0.0).sum(-1))
    found = jnp.concatenate(sums, axis=-1)
    return join_rows(found, jnp.asarray(batch.target_mask)) if videos else found


def sum_over_parts(
    function: Callable[[Batch], Any], batch: Batch, n: int, together: int = 1
) -> Any:
    """Add up the values of a function over `n` micro-batches of a batch, one after the other.

    Args:
        together: neighbouring rows that must be in the same micro-batch.
    """
    if together > 1:
        groups = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), batch)
        rows = lambda part: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part)  # noqa: E731
        return sum_over_parts(lambda part: function(rows(part)), groups, n)
    # A strided split: each device keeps its own rows in every micro-batch.
    parts = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch
    )
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts)),
    )
    return jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zeros, parts
    )[0]


@built_once
def make_scorer(
    model: ModelConfig, compute: Compute, videos: bool = False
) -> Callable[[dict, Batch], jax.Array]:
    """Build `score(params, batch)`, the sums of `answer_sums` under the given parameters."""

    def score(params: dict, batch: Batch) -> jax.Array:
        logps = families.bind(model, cast(params, compute.dtype)).token_logps(
            batch, chunk=compute.head_chunk, attention=compute.attention
        )
        return answer_sums(logps, batch, videos)

    return score
