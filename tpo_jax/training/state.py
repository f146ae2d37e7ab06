"""The train state: trainable and frozen parameters, optimizer moments, step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tpo_jax.errors import InputError
from tpo_jax.parallel.sharding import parameter_shardings


def split_params(params: dict, freeze: tuple[str, ...]) -> tuple[dict, dict]:
    """(trainable, frozen) by top-level name: `tower`, `projector`, `newline`, `decoder`.

    Raises:
        InputError: a frozen part that the model does not have, or nothing left to train.
    """
    unknown = sorted(set(freeze) - set(params))
    if unknown:
        raise InputError(f"train.freeze names {unknown}; the model has {sorted(params)}")
    trainable = {name: part for name, part in params.items() if name not in freeze}
    if not trainable:
        raise InputError("train.freeze leaves nothing to train")
    return trainable, {name: params[name] for name in freeze}


def learning_rate_schedule(peak: float, num_steps: int, warmup_ratio: float) -> optax.Schedule:
    """Linear warm-up from 0 over the first `warmup_ratio` of the steps, then cosine to 0.

    Raises:
        InputError: the ratio is no share.
    """
    if not 0 <= warmup_ratio <= 1:
        raise InputError(f"train.warmup_ratio={warmup_ratio} must be between 0 and 1")
    warmup = round(warmup_ratio * num_steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, max(num_steps, warmup + 1)
    )


def make_optimizer(config, schedule: Callable) -> optax.GradientTransformation:
    """AdamW with clipping by global norm; no decay on norms and biases.

    Args:
        config: `max_grad_norm`, `b1`, `b2`, `eps`, `weight_decay`.
        schedule: step to learning rate.
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in ("kernel", "embedding"), params
        )

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def new_state(params: dict, optimizer, freeze: tuple[str, ...]) -> dict:
    """State at step 0: `params` (float32 masters), `frozen` (as given), `opt`, `step`.

    Pure, so `jax.eval_shape` gives the abstract state.
    """
    trainable, frozen = split_params(params, freeze)
    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
    return {
        "params": trainable,
        "frozen": frozen,
        "opt": optimizer.init(trainable),
        "step": jnp.zeros((), jnp.int32),
    }


def state_shardings(mesh: jax.sharding.Mesh, abstract: dict):
    """NamedSharding of every leaf; moments lie where their parameter lies."""
    return parameter_shardings(mesh, abstract)
