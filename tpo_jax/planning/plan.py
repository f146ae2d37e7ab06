"""Compile the train step of a config for a TPU slice, on a machine without a TPU."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import batch_sharding, check_heads, check_rows, parameter_shardings
from tpo_jax.planning import hlo
from tpo_jax.planning.chips import CHIPS, Chip, devices_of
from tpo_jax.training import experiment
from tpo_jax.training.state import learning_rate_schedule, make_optimizer, new_state
from tpo_jax.training.step import Compute, make_step
from tpo_jax.training.weights import stored_weights

TEXT_TOKENS = 100  # of the prefix beside the video, where the config does not say
RESPONSE_TOKENS = 128
GIB = 2**30


@dataclasses.dataclass
class Plan:
    """Memory, FLOPs and traffic of a compiled step; bytes and FLOPs are per device unless said
    otherwise.
    """

    topology: str
    devices: int
    chips: int
    mesh: dict[str, int]
    pairs: int  # per step
    frames: int
    prefix: int
    response: int
    fits: bool
    limit: float
    peak: float  # where the step does not fit: the memory it needs
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    minimum_flops: float = 0.0  # of all chips, by formula
    # The following fields stay empty where jaxlib cannot read the compiled program.
    flops: float = 0.0  # of all chips, by the compiled program
    hbm_bytes: float = 0.0
    collectives: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    pairs_per_hour: float = 0.0
    chip_hours: float = 0.0  # for 10,000 pairs


def minimum_flops(
    model: ModelConfig,
    shape: BatchShape,
    live_reference: bool = False,
    frozen_decoder: bool = False,
) -> float:
    """Return the FLOPs of a step that computes nothing twice.

    The backward pass takes twice the FLOPs of the forward pass; the frozen tower has none.
    Attention is causal and the head reads the answers only.

    Args:
        live_reference: one more forward pass after the tower.
        frozen_decoder: no gradients of the decoder's weights; adapters' own work is left out.
    """
    d, (prefix, response, frames) = model.decoder, (shape.prefix, shape.response, shape.frames)
    D, C = d.width, d.head_dim
    layer = D * C * (2 * d.heads + 2 * d.kv_heads) + 3 * D * d.mlp_width
    answers = shape.questions * shape.answers * response
    linear = 2 * d.layers * layer * (prefix + answers) + 2 * D * d.vocab_size * answers
    pairs_seen = prefix**2 / 2 + answers * (prefix + response / 2)
    attention = 4 * d.layers * d.heads * C * pairs_seen
    tower, projector = families.of(model).frame_flops(model)
    passes = 4 if live_reference else 3
    linear *= passes - frozen_decoder
    return shape.rows * (linear + passes * (attention + frames * projector) + frames * tower)


def compile_step(
    config: ConfigDict, model: ModelConfig, topology: str, slices: int = 1
) -> tuple[Plan, jax.stages.Compiled | None]:
    """Compile the step of an experiment.

    Args:
        config: as `train` takes it.
        topology: of one slice.

    Returns:
        The plan, and the compiled step or None where it does not fit.

    Raises:
        InputError: the config cannot run on these slices.
    """
    devices = devices_of(topology, slices)
    wanted = experiment.read(config)
    mesh = make_mesh(dataclasses.asdict(wanted.mesh), devices)
    compute = wanted.compute
    if compute.attention == "auto":
        compute = dataclasses.replace(compute, attention="splash")
    check_rows(wanted.data.batch_size // wanted.data.pairs_per_row, mesh, compute.micro_batches)
    check_heads(model.decoder.heads, model.decoder.kv_heads, mesh)
    shape = _batch_shape(wanted, model)
    live = wanted.objective.uses_live_reference
    frozen = bool(wanted.lora.rank) or "decoder" in wanted.optimizer.freeze
    chip = CHIPS[topology.split(":")[0]]
    plan = Plan(
        topology if slices == 1 else f"{slices} x {topology}",
        len(devices),
        len(devices) // chip.devices,
        dict(mesh.shape),
        wanted.data.batch_size,
        shape.frames,
        shape.prefix,
        shape.response,
        fits=False,
        limit=chip.hbm * GIB,
        peak=0.0,
        minimum_flops=minimum_flops(model, shape, live, frozen),
    )
    lowered = _lower(wanted, compute, model, shape, mesh)
    try:
        with jax.set_mesh(mesh):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        plan.peak = memory_asked(error)
        return plan, None
    _measure(plan, compiled, chip)
    return plan, compiled


def _batch_shape(wanted: experiment.Experiment, model: ModelConfig) -> BatchShape:
    """Return the shape of a batch; InputError if a row exceeds the model's context."""
    data, objective = wanted.data, wanted.objective
    needed = model.visual_tokens(data.num_frames) + TEXT_TOKENS
    prefix = data.max_prefix or -(-needed // data.prefix_multiple) * data.prefix_multiple
    response = data.max_response or RESPONSE_TOKENS
    if prefix + response > model.max_length:
        raise InputError(
            f"{prefix} prefix and {response} response tokens exceed the model's context of "
            f"{model.max_length}"
        )
    cached = objective.uses_reference and not objective.uses_live_reference
    return BatchShape(
        rows=data.batch_size // data.pairs_per_row,
        prefix=prefix,
        questions=data.pairs_per_row,
        answers=2,
        response=response,
        frames=data.num_frames,
        frame_shape=model.frame_shape,
        prefix_labels=data.prompt_style == "dpo_trainer",
        pairs=True,
        phrases=objective.uses_phrases,
        reference_sums=(4 if objective.uses_phrases else 2) if cached else 0,
    )


def _lower(
    wanted: experiment.Experiment,
    compute: Compute,
    model: ModelConfig,
    shape: BatchShape,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Lowered:
    """Lower the step for the shapes and shardings of its arguments."""
    settings, objective, lora = wanted.optimizer, wanted.objective, wanted.lora
    optimizer = make_optimizer(settings, learning_rate_schedule(1e-6, 100, 0.1))
    abstract = jax.eval_shape(
        lambda p: new_state(p, optimizer, settings.freeze, lora, 0),
        stored_weights(wanted.source, model),
    )
    shardings = parameter_shardings(mesh, abstract)
    state = jax.tree.map(lambda x, s: _placed(x, x.dtype, s), abstract, shardings)
    batch = jax.tree.map(lambda x: _placed(x, x.dtype, batch_sharding(mesh)), shape.abstract())
    reference = None
    if objective.uses_live_reference:
        reference = jax.tree.map(
            lambda x: _placed(x, jnp.dtype(compute.dtype), x.sharding),
            {name: part for name, part in state.params.items() if name not in state.frozen},
        )
    step = jax.jit(
        make_step(model, objective, compute, optimizer, lora),
        donate_argnums=0,
        out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())),
    )
    with jax.set_mesh(mesh):
        return step.lower(state, batch, reference)


def _placed(
    x: jax.ShapeDtypeStruct, dtype: jax.typing.DTypeLike, sharding: jax.sharding.Sharding
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)


def memory_asked(error: jax.errors.JaxRuntimeError) -> float:
    """Return the bytes per device that a program needs, from the error that it does not fit.

    Raises:
        JaxRuntimeError: the given error, if it says something else.
    """
    asked = re.search(r"([\d.]+)([KMGT])\)? (?:of|exceeds available)", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not asked:
        raise error
    return float(asked[1]) * {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[asked[2]]


def _measure(plan: Plan, compiled: jax.stages.Compiled, chip: Chip) -> None:
    """Read the plan's figures from the compiled step."""
    memory = compiled.memory_analysis()
    plan.peak = float(memory.peak_memory_in_bytes)
    plan.memory = {
        name: float(getattr(memory, f"{name}_size_in_bytes"))
        for name in ("argument", "output", "alias", "temp")
    }
    plan.fits = plan.peak <= plan.limit
    try:
        work = hlo.work(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        # jaxlib 0.10.2 cannot read some of what libtpu 0.0.51 writes for tpu7x.
        if "RET_CHECK" not in str(error):
            raise
        return
    plan.flops, plan.hbm_bytes = work.flops * plan.devices, work.hbm_bytes
    plan.collectives = dict(work.collectives)
    plan.seconds = {
        "compute": work.flops / chip.flops,
        "memory": work.hbm_bytes / chip.bandwidth,
        "links": sum(size for _, size in work.collectives.values()) / chip.links,
    }
    step = max(plan.seconds.values())
    plan.pairs_per_hour = 3600 * plan.pairs / step
    plan.chip_hours = 10_000 / plan.pairs_per_hour * plan.chips
