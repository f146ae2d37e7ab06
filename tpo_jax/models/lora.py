"""Low-rank adapters on decoder projections (LoRA, arXiv 2106.09685), as PEFT defines them.

A projection `x W` becomes `x W + (alpha / rank) (x A) B`; `B` begins at zero. The products are not
merged into the weight, so that the backward pass needs no gradient of `W`, which would be a third
of the decoder's work and, at 7B, as many bytes as its weights.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from tpo_jax.errors import InputError
from tpo_jax.parallel.programs import LayerwiseProgram

# PEFT's (and the original module's) names, and the decoder's.
PROJECTIONS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections are adapted and how; `rank` 0: none, the weights themselves train."""

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = tuple(PROJECTIONS)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise InputError(f"lora.rank={self.rank} must not be negative")
        if self.alpha <= 0:
            raise InputError(f"lora.alpha={self.alpha} must be above 0")
        # In a list, not the dict: a target may be unhashable, whatever a config can hold.
        if not self.targets or any(t not in list(PROJECTIONS) for t in self.targets):
            raise InputError(
                f"lora.targets={tuple(self.targets)!r} must be some of {', '.join(PROJECTIONS)}"
            )

    @property
    def scale(self) -> float:
        """Factor of the product of `A` and `B`."""
        return self.alpha / self.rank


NO_ADAPTERS = Lora()


def init_adapters(lora: Lora, params: dict, seed: int) -> dict:
    """Return initial adapters, float32: `{"decoder": {"layers": {"q": {"lora_a", "lora_b"}}}}`.

    Args:
        lora: rank above 0.
        params: of the model, for the shapes `[L, in, out]` of its kernels.
        seed: of `A`, uniform between `-1 / sqrt(in)` and `1 / sqrt(in)`.
    """
    adapters = {}
    for number, target in enumerate(sorted(lora.targets)):
        name = PROJECTIONS[target]
        L, inputs, outputs = params["decoder"]["layers"][name]["kernel"].shape
        key = jax.random.fold_in(jax.random.key(seed), number)
        bound, shape = inputs**-0.5, (L, inputs, lora.rank)
        adapters[name] = {
            "lora_a": jax.random.uniform(key, shape, jnp.float32, -bound, bound),
            "lora_b": jnp.zeros((L, lora.rank, outputs), jnp.float32),
        }
    return {"decoder": {"layers": adapters}}


def join(a: dict, b: dict) -> dict:
    """Join two trees that have no leaf in common."""
    both = {name: join(a[name], b[name]) for name in a.keys() & b.keys()}
    return {**a, **b, **both}


def scaled(params: dict, lora: Lora) -> dict:
    """Return parameters with `alpha / rank` in the adapters' `B`, as the decoder takes them."""
    if not lora.rank:
        return params

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        return x * lora.scale if path[-1].key == "lora_b" else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def adapters_of(params: dict) -> dict:
    """Return the adapted projections by name, `{"q": {"lora_a": ..., "lora_b": ..., ...}}`."""
    layers = params.get("decoder", {}).get("layers", {})
    return {name: part for name, part in layers.items() if "lora_a" in part}


def merge(params: dict, lora: Lora) -> dict:
    """Return the parameters with the adapters merged into the kernels, in the kernels' dtype.

    Adapters may lie beside any kernel, `[in, out]` or stacked `[L, in, out]`. A result is sharded
    as its kernel, whose buffer is donated.
    """

    def merged(part: dict) -> dict:
        if "lora_a" not in part:
            return {k: merged(x) if isinstance(x, dict) else x for k, x in part.items()}
        kernel, a, b = part["kernel"], part["lora_a"], part["lora_b"]
        kept = {name: x for name, x in part.items() if not name.startswith("lora_")}
        return kept | {"kernel": merging(lora.scale, kernel.sharding)(kernel, a, b)}

    return merged(params)


@functools.cache
def merging(scale: float, where: jax.sharding.Sharding) -> LayerwiseProgram:
    """Return the program that adds the product of adapters to a kernel, in float32 and layer by
    layer where it is a stack.
    """

    def add(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        product = jnp.matmul(a, b, precision="highest") * scale
        return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)

    def whole(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        if kernel.ndim == 2:
            return add(kernel, a, b)
        return jax.lax.map(lambda layer: add(*layer), (kernel, a, b))

    return LayerwiseProgram(whole, donate_argnums=0, out_shardings=where)
