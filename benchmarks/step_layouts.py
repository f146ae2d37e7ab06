"""The layouts `step.py` compares: their programs, and what they cost."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import step_formula
from tpo_jax import families
from tpo_jax.models import classic
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.vlm import cast
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss
from tpo_jax.planning import hlo
from tpo_jax.training.state import TrainState, new_state
from tpo_jax.training.step import Compute, make_scorer, make_step

OBJECTIVE = Objective(beta=0.1, alpha=0.5)
OPTIMIZER = optax.adamw(1e-5)
FREEZE = ("tower",)


def make_batch(model: ModelConfig, frames: int, text: int, response: int) -> Batch:
    """Return one random pair without padding: the video, `text` tokens, the answers."""
    draws, S = np.random.default_rng(0), model.tower.image_size
    n, W = model.visual_tokens(frames), model.decoder.vocab_size
    index = np.where(np.arange(n + text) < n, np.arange(n + text), -1).astype(np.int32)[None]
    ids = draws.integers(0, W, (1, 1, 2, response + 1), np.int32)
    return Batch(
        frames=draws.integers(0, 256, (1, frames, S, S, 3), np.uint8),
        prefix_ids=np.where(index < 0, draws.integers(0, W, index.shape, np.int32), 0),
        prefix_mask=np.ones(index.shape, bool),
        visual_index=index,
        input_ids=ids[..., :-1],
        input_mask=np.ones_like(ids[..., 1:], bool),
        target_ids=ids[..., 1:],
        target_mask=np.ones_like(ids[..., 1:], bool),
        pair_index=np.zeros((1, 1), np.int32),
    )


def make_original(logps: Callable, dtype: str, *, live: bool) -> Callable:
    """Return `step(state, reference, batch) -> (state, loss)` around any way to `token_logps`.

    `live`: reference weights, else the batch brings `reference_logps`.
    """

    def step(state, reference, batch):
        mask, totals = batch.target_mask, denominators(batch.target_mask)
        if live:
            answers = logps(cast(reference, dtype), batch).sum(-1)
        else:
            answers = batch.reference_logps

        def loss(trainable):
            found = logps(cast(trainable | state.frozen, dtype), batch)
            return tpo_loss(found, mask, answers, OBJECTIVE, totals)[0]

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt = OPTIMIZER.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, state.frozen, opt, state.step + 1), value

    return step


def peak_bytes(compiled) -> int:
    """Return the peak memory of a program in bytes, arguments included."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return held + memory.output_size_in_bytes - memory.alias_size_in_bytes


class Seconds(NamedTuple):
    """Of one call."""

    wall: float
    cpu: float  # of all threads


def medians(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """Return the medians of interleaved repeats of every way, after one that warms up.

    A way whose work is done by another process returns its CPU time as `{"cpu": seconds}`.
    """
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(way())
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            elsewhere = isinstance(result, dict) and "cpu" in result
            seconds[name].append(Seconds(wall, result["cpu"] if elsewhere else cpu))
    return {
        name: Seconds(*map(statistics.median, zip(*values[1:], strict=True)))
        for name, values in seconds.items()
    }


@dataclasses.dataclass
class Layout:
    """A layout at one length; what it has no memory for is not a number."""

    parts: dict[str, float]  # FLOPs by formula
    flops: float = math.nan  # of the compiled program
    bytes: float = math.nan
    seconds: Seconds = Seconds(math.nan, math.nan)
    loss: float = math.nan


def measure(
    model: ModelConfig, frames: int, text: int, response: int, dtype: str, repeats: int
) -> tuple[dict[str, Layout], int]:
    """Measure all layouts at one length with full remat; return them and the prefix length."""
    remat = "full"
    batch = jax.tree.map(jnp.asarray, make_batch(model, frames, text, response))
    policy, reference = families.init_params(model, 0), families.init_params(model, 1)
    compute = Compute(dtype, remat=remat)
    scored = jax.jit(make_scorer(model, compute))(reference, batch)
    cached = dataclasses.replace(batch, reference_logps=scored)
    fast = make_step(model, OBJECTIVE, compute, OPTIMIZER)

    def rows(params, batch):
        return classic.token_logps(
            families.bind(model, params), batch, remat=remat, freeze_tower=True
        )

    steps = {
        "original": (make_original(rows, dtype, live=True), (reference, batch)),
        "cached reference": (make_original(rows, dtype, live=False), ({}, cached)),
        "ours": (lambda state, none, batch: fast(state, batch), ({}, cached)),
    }
    state = jax.jit(lambda p: new_state(p, OPTIMIZER, FREEZE))(policy)
    sizes = (model, frames, batch.prefix_ids.shape[1], response, remat)
    parts = step_formula.layouts(*sizes)
    found, ways = {}, {}
    for name, (step, arguments) in steps.items():
        layout = found[name] = Layout(parts[name])
        try:
            compiled = jax.jit(step, donate_argnums=0).lower(state, *arguments).compile()
            layout.bytes = peak_bytes(compiled)
            if jax.default_backend() != "gpu":  # programs for GPUs hide them in library calls
                layout.flops = hlo.work(compiled.as_text()).flops
            _, result = compiled(jax.tree.map(jnp.copy, state), *arguments)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        layout.loss = float(result["losses/total"] if name == "ours" else result)

        def way(compiled=compiled, arguments=arguments):
            nonlocal state
            state, _ = compiled(state, *arguments)
            return state

        ways[name] = way
    for name, seconds in medians(ways, repeats).items():
        found[name].seconds = seconds
    return found, batch.prefix_ids.shape[1]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return the table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
