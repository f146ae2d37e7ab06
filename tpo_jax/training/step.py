"""The train step: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.qwen2 import remat_policy
from tpo_jax.models.vlm import bind, cast
from tpo_jax.objectives.preference import Objective, denominators, mean_gains, tpo_loss
from tpo_jax.parallel.attention import BACK_ENDS

DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the model is run; changes speed and memory, never the result beyond rounding."""

    dtype: str = "bfloat16"
    remat: str = "full"
    head_chunk: int = 0  # response positions per application of the head, 0: all
    micro_batches: int = 1
    attention: str = "auto"  # of the prefix: auto, xla or splash

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise InputError(f"compute.dtype={self.dtype!r} must be one of {DTYPES}")
        remat_policy(self.remat)
        if self.attention not in BACK_ENDS:
            raise InputError(f"compute.attention={self.attention!r} must be one of {BACK_ENDS}")
        if self.head_chunk < 0:
            raise InputError(f"compute.head_chunk={self.head_chunk} must not be negative")
        if self.micro_batches < 1:
            raise InputError(f"compute.micro_batches={self.micro_batches} must be above 0")


def make_step(
    model: ModelConfig,
    objective: Objective,
    compute: Compute,
    optimizer: optax.GradientTransformation,
) -> Callable[[dict, dict], tuple[dict, dict]]:
    """Builds `step(state, batch) -> (state, metrics)`, ready for `jax.jit` with the state donated.

    Gradients, their sum over micro-batches and the optimizer are float32. The loss of every
    micro-batch is its share of the whole batch's means, so accumulation equals the full batch.

    Args:
        model: config of the model.
        objective: weights of the loss.
        compute: dtype, remat and batching.
        optimizer: of the trainable parameters.
    """

    def token_logps(trainable, frozen, batch):
        return bind(model, cast(trainable | frozen, compute.dtype)).token_logps(
            batch,
            remat=compute.remat,
            chunk=compute.head_chunk,
            freeze_tower="tower" in frozen,
            attention=compute.attention,
        )

    def loss_fn(trainable, frozen, batch, totals):
        return tpo_loss(
            token_logps(trainable, frozen, batch),
            batch["target_mask"],
            batch.get("reference_logps"),
            objective,
            totals,
            batch.get("phrase_mask"),
        )

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state, batch):
        totals = denominators(batch["target_mask"])

        def gains(part):
            logps = token_logps(state["params"], state["frozen"], part)
            return mean_gains(logps, part["target_mask"], part.get("reference_logps"), totals)

        def micro(part):
            (_, metrics), grads = gradient(state["params"], state["frozen"], part, totals)
            return grads, metrics

        if compute.micro_batches == 1:
            grads, metrics = micro(batch)
        else:
            if objective.uses_mean_gains:
                # Every part's loss depends on the whole batch: one more forward pass.
                totals["mean_gains"] = sum_over_parts(gains, batch, compute.micro_batches)
            grads, metrics = sum_over_parts(micro, batch, compute.micro_batches)

        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "pairs": totals["pairs"],
        }
        state = state | {
            "params": params,
            "opt": opt,
            "step": state["step"] + 1,
        }
        return state, metrics

    return step


def sum_over_parts(function: Callable[[dict], Any], batch: dict, n: int) -> Any:
    """Sum of a function's values over `n` micro-batches of a batch, one after the other."""
    # Strided split: every device keeps rows of its own in every micro-batch.
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


def make_scorer(model: ModelConfig, compute: Compute) -> Callable[[dict, dict], jax.Array]:
    """Builds `score(params, batch) -> float32 [B, Q, A]`, summed log-probabilities of every
    answer; `[B, Q, 2 * A]`, the sums over their phrases behind, of a batch with `phrase_mask`.
    """

    def score(params, batch):
        logps = bind(model, cast(params, compute.dtype)).token_logps(
            batch, chunk=compute.head_chunk, attention=compute.attention
        )
        phrases = [batch["phrase_mask"]] if "phrase_mask" in batch else []
        sums = [logps.sum(-1), *(jnp.where(mask, logps, 0.0).sum(-1) for mask in phrases)]
        return jnp.concatenate(sums, axis=-1)

    return score
