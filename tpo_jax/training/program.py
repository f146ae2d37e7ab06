"""The step as `train` compiles it, and the shapes, dtypes and shardings of its arguments."""

import dataclasses
from typing import Any

import jax
import optax

from tpo_jax.models.batch import BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.objectives.preference import Objective
from tpo_jax.parallel.sharding import batch_sharding, placed
from tpo_jax.training.experiment import Experiment
from tpo_jax.training.state import TrainState
from tpo_jax.training.step import make_step


def jitted_step(
    experiment: Experiment,
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
    """Return the jitted step, which donates its input state.

    Args:
        state: abstract; its shardings are those of the next state.
    """
    objective, compute, lora = experiment.objective, experiment.compute, experiment.lora
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        make_step(model, objective, compute, optimizer, lora),
        donate_argnums=0,
        out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())),
    )


def step_arguments(
    experiment: Experiment, shape: BatchShape, state: TrainState, mesh: jax.sharding.Mesh
) -> tuple[tuple[TrainState, Any], dict[str, Any]]:
    """Return the abstract arguments of every step of a run, by position and by name.

    Args:
        shape: of a batch of all processes, without the sums of the reference.
        state: abstract, with shardings.
    """
    rows, objective = batch_sharding(mesh), experiment.objective
    shape = dataclasses.replace(shape, reference_sums=reference_sums(objective))
    batch = jax.tree.map(lambda x: placed(x, rows), shape.abstract())
    if not objective.uses_live_reference:
        return (state, batch), {}
    trained = {name: part for name, part in state.params.items() if name not in state.frozen}
    live = lambda x: placed(x, x.sharding, experiment.compute.dtype)  # noqa: E731
    return (state, batch), {"reference": jax.tree.map(live, trained)}


def reference_sums(objective: Objective) -> int:
    """Return how many summed reference log-probabilities a batch holds per pair."""
    if objective.uses_live_reference or not objective.uses_reference:
        return 0
    return 4 if objective.uses_phrases else 2
