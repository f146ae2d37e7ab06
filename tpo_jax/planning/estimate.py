"""Lower bounds on memory and time of a train step by formula, to compile fewer programs."""

import math
from typing import Any

import jax

from tpo_jax.models.batch import BatchShape
from tpo_jax.models.blocks import REMAT_TENSORS
from tpo_jax.models.config import DecoderConfig, ModelConfig
from tpo_jax.planning.chips import Chip
from tpo_jax.planning.plan import minimum_flops
from tpo_jax.training.experiment import Experiment
from tpo_jax.training.state import TrainState

BF16 = 2  # bytes
# A splash kernel does two products forward and seven backward; `minimum_flops` counts six in all.
_SPLASH = 9 / 6


def kept_tensors(remat: str) -> set[str]:
    """Return the tensors of `models.blocks.REMAT_TENSORS` that stay on the device for the backward
    pass.
    """
    if remat == "none":
        return set(REMAT_TENSORS)
    entries = (entry.partition(":") for entry in remat.split(","))
    return {name for name, _, place in entries if place == "save"}


def _widths(d: DecoderConfig) -> dict[str, int]:
    """Return the elements per token and layer of each tensor of `REMAT_TENSORS`."""
    return {
        "qkv": (d.heads + 2 * d.kv_heads) * d.head_dim,
        "attention": d.heads * d.head_dim,
        "residual": d.width,
        "mlp": 2 * d.mlp_width,
    }


def device_bytes(tree: Any) -> int:
    """Return the bytes that a tree of abstract arrays takes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jax.dtypes.itemsize_bits(x.dtype) // 8
        for x in jax.tree.leaves(tree)
    )


def least_memory(
    wanted: Experiment,
    model: ModelConfig,
    shape: BatchShape,
    state: TrainState,
    mesh: jax.sharding.Mesh,
) -> float:
    """Return a lower bound on a step's bytes on one device.

    Either the forward pass has just ended, with the trained weights in the compute dtype and what
    the layers keep; or the backward pass has, with float32 gradients.
    """
    d, compute = model.decoder, wanted.compute
    size = dict(mesh.shape)
    rows = shape.rows // (size["data"] * size["fsdp"] * compute.micro_batches)
    answers = shape.questions * shape.answers * shape.response
    tokens = rows * (shape.prefix / size["context"] + answers)
    widths = _widths(d)
    inside = sum(widths[name] for name in kept_tensors(compute.remat) - {"residual"})
    outside = widths["residual"] * (1 + ("residual" in kept_tensors(compute.remat)))
    kept = d.layers * tokens * BF16 * (outside + inside / size["tensor"])
    trained = device_bytes(state.params)
    sums = trained if compute.micro_batches > 1 else 0
    forward = trained / 2 + kept + sums if compute.dtype == "bfloat16" else kept + sums
    return device_bytes(state) + max(forward, trained)


def least_seconds(
    wanted: Experiment,
    model: ModelConfig,
    shape: BatchShape,
    state: TrainState,
    mesh: jax.sharding.Mesh,
    chip: Chip,
) -> float:
    """Return a lower bound on the time of a step, every unit of a chip at its peak rate.

    Layers are gathered and read for the forward and the backward pass of every micro-batch.
    """
    size = dict(mesh.shape)
    layers = [x for part in (state.params, state.frozen) for x in _layers(part)]
    bits = [x.size * min(8 * BF16, jax.dtypes.itemsize_bits(x.dtype)) for x in layers]
    read = 2 * wanted.compute.micro_batches * sum(bits) / 8 / size["tensor"]
    moved = read * (1 - 1 / (size["fsdp"] * size["context"]))
    return max(
        _flops(wanted, model, shape) / mesh.devices.size / chip.flops,
        (read + 2 * device_bytes((state.params, state.opt))) / chip.bandwidth,
        moved / chip.links,
    )


def _layers(part: dict) -> list[jax.ShapeDtypeStruct]:
    return jax.tree.leaves(part.get("decoder", {}).get("layers", {}))


def _flops(wanted: Experiment, model: ModelConfig, shape: BatchShape) -> float:
    """Return the FLOPs of a step with what its backward pass recomputes."""
    d = model.decoder
    frozen = bool(wanted.lora.rank) or "decoder" in wanted.optimizer.freeze
    live = wanted.objective.uses_live_reference
    least = minimum_flops(model, shape, live, frozen)
    answers = shape.questions * shape.answers * shape.response
    tokens = shape.rows * d.layers * (shape.prefix + answers)
    pairs_seen = shape.rows * shape.prefix**2 / 2
    attention = 4 * d.layers * d.heads * d.head_dim * pairs_seen
    widths, kept = _widths(d), kept_tensors(wanted.compute.remat)
    inputs = {"qkv": d.width, "residual": d.heads * d.head_dim, "mlp": d.width}
    again = attention * ("attention" not in kept)
    again += sum(2 * tokens * inputs[name] * widths[name] for name in set(inputs) - kept)
    return least + 3 * attention * (_SPLASH - 1) + again
