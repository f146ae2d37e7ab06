"""Compile the train step of a config for a TPU slice, on a machine without a TPU."""

import dataclasses
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import (
    check_heads,
    check_rows,
    parameter_shardings,
    placed,
)
from tpo_jax.planning.chips import CHIPS, Chip, devices_of
from tpo_jax.planning.program import (
    GIB,
    Program,
    cached_program,
    compile_program,
    without_source_lines,
)
from tpo_jax.training import experiment
from tpo_jax.training.program import jitted_step, step_arguments
from tpo_jax.training.state import TrainState, learning_rate_schedule, make_optimizer, new_state
from tpo_jax.training.weights import stored_weights

TEXT_TOKENS = 100  # of the prefix beside the video, where the config does not say
RESPONSE_TOKENS = 128


@dataclasses.dataclass
class Plan:
    """Memory, FLOPs and traffic of a compiled step, or of the programs that answer the questions of
    a batch; bytes and FLOPs are per device unless said otherwise.
    """

    topology: str
    devices: int
    chips: int
    mesh: dict[str, int]
    pairs: int  # per step; where questions are answered: questions of a batch
    frames: int
    prefix: int
    response: int
    fits: bool
    limit: float
    peak: float  # where the step does not fit: the memory it needs
    of: str = "train"  # or the command whose programs are compiled
    rows: int = 0  # videos of a batch of such a command
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    minimum_flops: float = 0.0  # of all chips, by formula
    # The following fields stay empty where jaxlib cannot read the compiled program.
    flops: float = 0.0  # of all chips, by the compiled program
    recomputed: float = 0.0  # of these by `compute.remat`
    scores: float = 0.0  # of these for scores of attention that two kernels compute
    hbm_bytes: float = 0.0
    collectives: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    # Of each unit of a chip at its peak rate; of several programs, of each one's slowest unit.
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    pairs_per_hour: float = 0.0
    chip_hours: float = 0.0  # for 10,000 pairs
    flags: str = ""  # what a search chose; how to give a command its rows


def minimum_flops(
    model: ModelConfig,
    shape: BatchShape,
    live_reference: bool = False,
    frozen_decoder: bool = False,
    backward: bool = True,
) -> float:
    """Return the FLOPs of a step that computes nothing twice.

    The backward pass takes twice the FLOPs of the forward pass; the frozen tower has none.
    Attention is causal and the head reads the answers only.

    Args:
        live_reference: one more forward pass after the tower.
        frozen_decoder: no gradients of the decoder's weights; adapters' own work is left out.
        backward: false: one forward pass alone.
    """
    d, (prefix, response, frames) = model.decoder, (shape.prefix, shape.response, shape.frames)
    D, C = d.width, d.head_dim
    layer = D * C * (2 * d.heads + 2 * d.kv_heads) + 3 * D * d.mlp_width
    answers = shape.questions * shape.answers * response
    linear = 2 * d.layers * layer * (prefix + answers) + 2 * D * d.vocab_size * answers
    pairs_seen = prefix**2 / 2 + answers * (prefix + response / 2)
    attention = 4 * d.layers * d.heads * C * pairs_seen
    tower, projector = families.of(model).frame_flops(model)
    passes = (3 if backward else 1) + live_reference
    linear *= passes - frozen_decoder
    return shape.rows * (linear + passes * (attention + frames * projector) + frames * tower)


def compile_step(
    config: ConfigDict,
    model: ModelConfig,
    topology: str,
    slices: int = 1,
    cache: Path | None = None,
) -> tuple[Plan, jax.stages.Compiled | None]:
    """Compile the step of an experiment.

    Args:
        config: as `train` takes it.
        topology: of one slice.
        cache: folder of figures of steps compiled before; None: compile in any case.

    Returns:
        The plan, and the compiled step; None where it does not fit or is in the cache.

    Raises:
        InputError: the config cannot run on these slices.
    """
    devices = devices_of(topology, slices)
    wanted = experiment.read(config)
    mesh = make_mesh(dataclasses.asdict(wanted.mesh), devices)
    if wanted.compute.attention == "auto":
        # Not what `auto` falls back to: a prefix that the kernel does not take is an error here.
        compute = dataclasses.replace(wanted.compute, attention="splash")
        wanted = dataclasses.replace(wanted, compute=compute)
    together = wanted.objective.rows_together
    check_rows(wanted.data.rows, mesh, wanted.compute.micro_batches, together)
    check_heads(model.decoder.heads, model.decoder.kv_heads, mesh)
    shape = batch_shape(wanted, model)
    live = wanted.objective.uses_live_reference
    frozen = bool(wanted.lora.rank) or "decoder" in wanted.optimizer.freeze
    chip = CHIPS[topology.split(":")[0]]
    plan = Plan(
        topology if slices == 1 else f"{slices} x {topology}",
        len(devices),
        len(devices) // chip.devices,
        dict(mesh.shape),
        wanted.data.batch_size + wanted.data.video_pairs,
        wanted.data.frames.most,
        shape.prefix,
        shape.response,
        fits=False,
        limit=chip.hbm * GIB,
        peak=0.0,
        minimum_flops=minimum_flops(model, shape, live, frozen),
    )
    lowered = _lower(wanted, model, shape, mesh)
    program = cached_program(lowered, mesh, cache) if cache else compile_program(lowered, mesh)
    fill(plan, {"step": program}, chip)
    return plan, program.compiled


def prefix_tokens(model: ModelConfig, num_frames: int) -> int:
    """Return the most tokens of a prefix with a video of `num_frames` frames and some text."""
    beside = model.frame_text * model.batch_frames(num_frames)
    return model.visual_tokens(num_frames) + beside + TEXT_TOKENS


def batch_shape(wanted: experiment.Experiment, model: ModelConfig) -> BatchShape:
    """Return the shape of a batch; InputError if a row exceeds the model's context."""
    data, objective = wanted.data, wanted.objective
    num_frames = data.frames.most  # of several; the step with it takes the most memory
    needed = prefix_tokens(model, num_frames)
    prefix = data.max_prefix or -(-needed // data.prefix_multiple) * data.prefix_multiple
    response = data.max_response or RESPONSE_TOKENS
    if prefix + response > model.max_length:
        raise InputError(
            f"{prefix} prefix and {response} response tokens exceed the model's context of "
            f"{model.max_length}"
        )
    return BatchShape(
        rows=data.rows,
        prefix=prefix,
        questions=data.pairs_per_row,
        answers=2,
        response=response,
        frames=model.batch_frames(num_frames),
        frame_shape=model.frame_shape,
        prefix_labels=data.prompt_style == "dpo_trainer",
        pairs=True,
        phrases=objective.uses_phrases,
    )


def abstract_state(
    wanted: experiment.Experiment, model: ModelConfig, mesh: jax.sharding.Mesh
) -> tuple[optax.GradientTransformation, TrainState]:
    """Return the optimizer, and shapes, dtypes and shardings of the state that `train` begins with.

    Raises:
        InputError: the weights cannot be laid out over this mesh.
    """
    settings = wanted.optimizer
    optimizer = make_optimizer(settings, learning_rate_schedule(1e-6, 100, 0.1))
    abstract = jax.eval_shape(
        lambda p: new_state(p, optimizer, settings.freeze, wanted.lora, 0),
        stored_weights(wanted.source, model),
    )
    return optimizer, jax.tree.map(placed, abstract, parameter_shardings(mesh, abstract))


def _lower(
    wanted: experiment.Experiment,
    model: ModelConfig,
    shape: BatchShape,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Lowered:
    """Lower the step for the shapes and shardings of its arguments."""
    optimizer, state = abstract_state(wanted, model, mesh)
    step = jitted_step(wanted, model, optimizer, state, mesh)
    arguments, named = step_arguments(wanted, shape, state, mesh)
    with jax.set_mesh(mesh), without_source_lines():
        return step.lower(*arguments, **named)


def fill(plan: Plan, programs: dict[str, Program], chip: Chip) -> None:
    """Set a plan's figures from those of the programs that run one after the other."""
    worst = max(programs.values(), key=lambda program: program.peak)
    plan.peak, plan.memory = worst.peak, worst.memory
    plan.fits = all(program.memory for program in programs.values()) and plan.peak <= plan.limit
    works = [program.work for program in programs.values() if program.work]
    if len(works) < len(programs):
        return
    for name in ("flops", "recomputed", "scores"):
        setattr(plan, name, plan.devices * sum(getattr(work, name) for work in works))
    plan.hbm_bytes = sum(work.hbm_bytes for work in works)
    for work in works:
        for kind, (count, size) in work.collectives.items():
            before = plan.collectives.get(kind, [0.0, 0.0])
            plan.collectives[kind] = [before[0] + count, before[1] + size]
    if len(programs) == 1:
        (program,) = programs.values()
        plan.seconds = program.seconds(chip)
        step = max(plan.seconds.values())
    else:
        plan.seconds = {name: max(p.seconds(chip).values()) for name, p in programs.items()}
        step = sum(plan.seconds.values())
    plan.pairs_per_hour = 3600 * plan.pairs / step
    plan.chip_hours = 10_000 / plan.pairs_per_hour * plan.chips
