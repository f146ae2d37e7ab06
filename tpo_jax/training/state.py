"""The train state: trainable and frozen parameters, optimizer moments, step."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tpo_jax.errors import InputError
from tpo_jax.models.lora import NO_ADAPTERS, Lora, init_adapters, join
from tpo_jax.parallel.programs import built_once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and returns; parts of the model by their top-level name."""

    params: dict
    """float32 master weights of the trainable parts, adapters among them."""
    frozen: dict
    """The other parts, in the dtype they were given in."""
    opt: optax.OptState
    """Moments of `params`, and the optimizer's own step count."""
    step: jax.Array
    """int32 scalar: steps taken."""

    @property
    def moving(self) -> dict:
        """What steps change, by field: a checkpoint holds no more, the rest is the base's."""
        return {name: value for name, value in vars(self).items() if name != "frozen"}


DECAYED = ("kernel", "embedding", "lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with a cosine schedule, and which parts of the model it trains."""

    learning_rate: float = 4e-6  # peak
    warmup_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # of matrices and embeddings
    max_grad_norm: float = 1.0
    moments: str = "float32"
    freeze: tuple[str, ...] = ("tower",)

    def __post_init__(self) -> None:
        if self.moments not in ("float32", "bfloat16"):
            raise InputError(f"train.moments={self.moments!r} must be 'float32' or 'bfloat16'")
        if wrong := [part for part in self.freeze if not isinstance(part, str)]:
            raise InputError(f"train.freeze names {wrong}; parts of a model have names")


def split_params(
    params: dict, freeze: tuple[str, ...], lora: Lora = NO_ADAPTERS
) -> tuple[dict, dict]:
    """Split parameters into (trainable, frozen) by the names of the model's parts.

    Args:
        freeze: top-level names, such as `tower`, `projector` and `decoder`.
        lora: with adapters the decoder's own weights are frozen, too.

    Raises:
        InputError: a frozen part that the model does not have, or nothing left to train.
    """
    if unknown := [part for part in freeze if part not in params]:
        raise InputError(f"train.freeze names {unknown}; the model has {sorted(params)}")
    if lora.rank:
        freeze = (*freeze, "decoder")
    trainable = {name: part for name, part in params.items() if name not in freeze}
    if not trainable and not lora.rank:
        raise InputError("train.freeze leaves nothing to train")
    return trainable, {name: params[name] for name in freeze}


@built_once
def learning_rate_schedule(peak: float, num_steps: int, warmup_ratio: float) -> optax.Schedule:
    """Return a linear warm-up from 0 over the first `warmup_ratio` of the steps, then cosine to 0.

    Raises:
        InputError: a ratio outside of 0 to 1.
    """
    if not 0 <= warmup_ratio <= 1:
        raise InputError(f"train.warmup_ratio={warmup_ratio} must be between 0 and 1")
    warmup = round(warmup_ratio * num_steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, max(num_steps, warmup + 1)
    )


@built_once
def make_optimizer(config: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Build AdamW with clipping by global norm, without weight decay on norms and biases."""

    def decayed(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)

    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        adamw if config.moments == "float32" else stored_as_bfloat16(adamw),
    )


def stored_as_bfloat16(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wrap an optimizer that computes in float32 so that its moments are kept in bfloat16.

    Rounding is stochastic, so moments are unbiased. A step changes the second moment by 1 - b2 of
    the difference, less than half a unit in the last place of bfloat16: rounding to nearest would
    leave it unchanged. The random numbers depend on the step alone.
    """

    def narrow(state: optax.OptState, count: jax.Array | int) -> optax.OptState:
        leaves, tree = jax.tree.flatten(state)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), count), len(leaves))
        return tree.unflatten(
            _round_stochastically(key, x) if x.dtype == jnp.float32 else x
            for key, x in zip(keys, leaves, strict=True)
        )

    def widen(state: optax.OptState) -> optax.OptState:
        return jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state
        )

    def init(params: dict) -> optax.OptState:
        return narrow(optimizer.init(params), 0)

    def update(
        gradients: dict, state: optax.OptState, params: dict | None = None
    ) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(gradients, widen(state), params)
        return updates, narrow(state, optax.tree.get(state[0], "count"))

    return optax.GradientTransformation(init, update)


def _round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
    """Round float32 to one of the two nearest bfloat16; the nearer one is the more probable."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def new_state(
    params: dict,
    optimizer: optax.GradientTransformation,
    freeze: tuple[str, ...],
    lora: Lora = NO_ADAPTERS,
    seed: int = 0,
) -> TrainState:
    """Build the state at step 0; `seed` is that of the adapters.

    Pure, so `jax.eval_shape` gives the abstract state.
    """
    trainable, frozen = split_params(params, freeze, lora)
    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
    if lora.rank:
        trainable = join(trainable, init_adapters(lora, params, seed))
    return TrainState(trainable, frozen, optimizer.init(trainable), jnp.zeros((), jnp.int32))


@built_once
def make_initial(
    optimizer: optax.GradientTransformation, freeze: tuple[str, ...], lora: Lora, seed: int
) -> Callable[[dict], TrainState]:
    """Build `initial(params)`, the state of `new_state`."""
    return lambda params: new_state(params, optimizer, freeze, lora, seed)
