"""Train on shards: `python -m tpo_jax.train --config=FILE[:variant] --workdir=DIR
[--config.a.b=…]`; `docs/configs.md` explains the fields.

A working directory that holds a checkpoint is resumed. The result is `model/`, a model directory
that every other command takes. Adapters are merged into it; `adapters/` has them, and whatever else
was trained, in PEFT's layout. `report.html` is the run report, which `tpo_jax.report` writes while
the run is in progress.
On several hosts the same command runs on each, with `--distributed` and with the same shards and
working directory.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict, config_flags

from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.checkpoints.train_state import TrainCheckpoints
from tpo_jax.data.mixture import Mixture, open_mixture
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, note, run_command
from tpo_jax.io.files import write_json
from tpo_jax.io.paths import check_config, define_path
from tpo_jax.models.config import ModelConfig
from tpo_jax.objectives.conditional import VIDEO
from tpo_jax.objectives.preference import metric_names
from tpo_jax.parallel import distributed
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.programs import CACHE_HELP, built_once, compile_meanwhile, keep_programs
from tpo_jax.parallel.sharding import check_rows, parameter_shardings, placed
from tpo_jax.training import loop, run_page
from tpo_jax.training.experiment import Experiment, read
from tpo_jax.training.feed import make_feeds
from tpo_jax.training.held_out import PREFIX, HeldOut, make_evaluator
from tpo_jax.training.identity import check_same_run, identity
from tpo_jax.training.program import jitted_step, step_arguments
from tpo_jax.training.recorder import Recorder
from tpo_jax.training.reference import Reference
from tpo_jax.training.state import (
    TrainState,
    learning_rate_schedule,
    make_initial,
    make_optimizer,
    split_params,
)
from tpo_jax.training.step import METRICS, make_forward, make_scorer
from tpo_jax.training.watch import Watch
from tpo_jax.training.weights import open_reference, open_weights, save_result


def open_data(
    experiment: Experiment, model: ModelConfig, tokenizer: Path, mesh: jax.sharding.Mesh
) -> tuple[Mixture, Pipeline | None]:
    """Return the pairs to train on, and the held-out pairs if there are any.

    Raises:
        InputError: Shards, sizes of a batch and mesh do not fit each other.
    """
    data, compute = experiment.data, experiment.compute
    mixture = open_mixture(
        data,
        model,
        load_tokenizer(tokenizer, model),
        jax.process_index(),
        jax.process_count(),
    )
    for part in mixture.parts:
        if data.video_pairs and not len(part.two_videos.pairs):
            raise InputError(
                f"data.video_pairs={data.video_pairs}: {part.config.shards} holds no pair of two "
                "videos to train on; set data.video_pairs, objective.video_weight and "
                "objective.video_anchor to 0"
            )
    together = experiment.objective.rows_together
    check_rows(data.rows, mesh, compute.micro_batches, together)
    held_out = mixture.parts[0].held_out()
    evaluated = _videos(held_out) if held_out else set()
    for part in mixture.parts:
        if both := _videos(part) & evaluated:
            note(f"held-out pairs: {len(both)} of their videos are in {part.config.shards}, too")
    for found in filter(None, (*mixture.parts, held_out)):
        for num_frames in found.config.frames.counts:
            response = found.shape_with(num_frames).response
            if compute.head_chunk and response % compute.head_chunk:
                raise InputError(
                    f"compute.head_chunk={compute.head_chunk} must divide the {response} "
                    "positions of a response"
                )
    return mixture, held_out


def _videos(pipeline: Pipeline) -> set[str]:
    positions = (*pipeline.pairs, *pipeline.two_videos.pairs)
    pairs = [pipeline.shards.index[position] for position in positions]
    return {name for p in pairs for name in (p.video_id, p.rejected_video_id) if name}


def run_length(
    experiment: Experiment, mixture: Mixture, held_out: Pipeline | None, watch: Watch
) -> loop.LoopConfig:
    """Return how long the run is and when it writes what.

    Raises:
        InputError: `train.keep_best`, `train.eval_every` or `--profile_steps` cannot be met.
    """
    schedule, policy = experiment.schedule, experiment.checkpoints
    length = loop.LoopConfig(
        schedule.num_steps or len(mixture), schedule.log_every, schedule.eval_every
    )
    if watch.profiled.start > length.num_steps:
        raise InputError(
            f"--profile_steps={watch.profile_steps}: the run ends at step {length.num_steps}"
        )
    names = metric_names(experiment.objective)
    evaluated = [PREFIX + name for name in (*names, "pairs")] if length.eval_every else []
    if held_out and not len(held_out.two_videos.pairs):
        evaluated = [name for name in evaluated if not name.startswith(PREFIX + VIDEO)]
    policy.check_metric([*names, *METRICS, *evaluated])
    every = policy.checkpoint_every, length.eval_every
    if policy.metric in evaluated and (not min(every) or max(every) % min(every)):
        raise InputError(
            f"train.keep_best={policy.keep_best!r} ranks checkpoints of steps that are evaluated: "
            f"of train.checkpoint_every={every[0]} and train.eval_every={every[1]} one must be a "
            "multiple of the other"
        )
    return length


def frozen_copy(params: dict, dtype: str) -> dict:
    """Return a copy of parameters in another dtype, on the same devices."""
    shardings = jax.tree.map(lambda x: x.sharding, params)
    return jax.jit(_make_copy(dtype), out_shardings=shardings)(params)


@built_once
def _make_copy(dtype: str) -> Callable[[dict], dict]:
    return lambda params: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), params)


def make_directory(workdir: Path) -> None:
    """Make the working directory if there is none.

    Raises:
        InputError: It cannot be a directory.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be a directory: {error.strerror}") from error


def train(config: ConfigDict, workdir: Path, watch: Watch | None = None) -> Path | None:
    """Run the experiment of `config`, or resume it from the checkpoint in `workdir`.

    Returns:
        Directory of the trained model; None if the run was asked to stop before its end.
    """
    started, watch = time.time(), watch or Watch()
    check_config(config)
    experiment = read(config)
    objective, compute, lora = experiment.objective, experiment.compute, experiment.lora
    mesh = make_mesh(dataclasses.asdict(experiment.mesh))
    begin = open_weights(experiment, mesh)
    model, load_reference = begin.model, open_reference(experiment.source, begin, mesh)
    mixture, held_out_pairs = open_data(experiment, model, begin.tokenizer, mesh)
    length = run_length(experiment, mixture, held_out_pairs, watch)

    settings, seed = experiment.optimizer, experiment.schedule.seed
    schedule = learning_rate_schedule(
        settings.learning_rate, length.num_steps, settings.warmup_ratio
    )
    optimizer = make_optimizer(settings, schedule)
    initial = make_initial(optimizer, settings.freeze, lora, seed)
    abstract = jax.eval_shape(initial, begin.abstract)
    shardings = parameter_shardings(mesh, abstract)
    where = jax.tree.map(placed, abstract, shardings)
    step = jitted_step(experiment, model, optimizer, where, mesh)
    evaluate = jax.jit(
        make_evaluator(make_forward(model, objective, compute, lora), objective),
        out_shardings=jax.NamedSharding(mesh, jax.P()),
    )
    # Compiled while the weights are read and the reference log-probabilities are computed.
    rows, seen = experiment.data.rows, mixture.seen(length.num_steps)
    # Directories whose batches have one shape share a program.
    shapes = dict.fromkeys(part.shape for parts in seen for part in parts)
    calls = [
        step_arguments(experiment, dataclasses.replace(shape, rows=rows), where, mesh)
        for shape in shapes
    ]
    step = compile_meanwhile(step, mesh, *calls)
    scorer = make_scorer(model, compute, objective.uses_videos)
    pairs = mixture, seen, held_out_pairs if length.eval_every else None
    feeds, other = None, ""
    if load_reference:  # before the weights are loaded, so that the devices hold one model
        params = load_reference()
        other = weights_fingerprint(params)
        feeds = make_feeds(experiment, Reference(scorer, params, mesh), other, *pairs)
        del params
    params = begin.load()
    if objective.uses_live_reference:
        live = frozen_copy(split_params(params, settings.freeze, lora)[0], compute.dtype)
        step = functools.partial(step, reference=live)
        evaluate = functools.partial(evaluate, reference=live)

    weights, meta = identity(experiment, config, params, mixture, held_out_pairs, other)
    make_directory(workdir)
    checkpoints = TrainCheckpoints(workdir / "checkpoints", experiment.checkpoints)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        batches = stack.enter_context(contextlib.closing(iter(mixture)))
        if saved := checkpoints.latest_meta():
            check_same_run(saved, meta)
        elif (workdir / "config.json").exists():
            print(f"{workdir} holds no checkpoint: starting at step 0", file=sys.stderr)

        if not feeds:
            feeds = make_feeds(experiment, Reference(scorer, params, mesh), weights, *pairs)
        feed, eval_feed = feeds
        held_out = None
        if held_out_pairs and eval_feed:
            held_out = HeldOut(held_out_pairs, eval_feed, evaluate, objective)
        if saved:
            frozen = split_params(params, settings.freeze, lora)[1]
            del params  # the trained ones are replaced by the restored ones
            restored, position = checkpoints.restore(where.moving)
            state = TrainState(frozen=frozen, **restored)
            batches.set_state(position)
            print(f"resuming at step {int(state.step)}", file=sys.stderr)
            watch.note_resume(int(state.step))
        else:
            state = jax.jit(initial, out_shardings=shardings, donate_argnums=0)(params)
            if jax.process_index() == 0:
                write_json(workdir / "config.json", meta["config"])
        recorder = Recorder(workdir, meta, schedule, watch, started)
        state = loop.run(length, step, state, batches, feed, checkpoints, recorder, held_out)
    if int(state.step) < length.num_steps:
        print(f"stopped at step {int(state.step)}; run again to resume", file=sys.stderr)
        return None
    return save_result(experiment, workdir, model, state, begin.tokenizer)


def main() -> None:
    """Run the command."""
    distributed.start(_DISTRIBUTED.value)
    keep_programs(_COMPILATION_CACHE.value)
    watch = Watch(_PROFILE_STEPS.value, _WANDB_PROJECT.value)
    result = train(_CONFIG.value, Path(_WORKDIR.value), watch)
    if result and jax.process_index() == 0:
        run_page.write(Path(_WORKDIR.value))
        print(result)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True)
    _WORKDIR = define_path(
        "workdir", None, "checkpoints, metrics and the trained model", required=True
    )
    _DISTRIBUTED = flags.DEFINE_string("distributed", "", distributed.FLAG_HELP)
    _COMPILATION_CACHE = flags.DEFINE_bool("compilation_cache", True, CACHE_HELP)
    _PROFILE_STEPS = flags.DEFINE_string(
        "profile_steps", "", "FIRST:LAST, steps to trace into workdir/profile"
    )
    _WANDB_PROJECT = flags.DEFINE_string(
        "wandb_project", "", "write metrics to this project of Weights & Biases, too"
    )
    flags.mark_flag_as_required("config")
    run_command(main)
