"""Trains on shards: `python -m tpo_jax.train --config=FILE[:variant] --workdir=DIR
[--config.a.b=…]`; `docs/configs.md` explains the fields.

A working directory that holds a checkpoint is resumed. It ends with `model/`, a model directory
that every other command takes; adapters are merged into it and, in PEFT's layout with whatever else
was trained, in `adapters/`. `report.html` is a page about the run, which `tpo_jax.report` makes
earlier, too.
On several hosts the same command runs on each, with `--distributed` and with shards and working
directory at the same place.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from tpo_jax import families
from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.checkpoints.train_state import TrainCheckpoints
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, run_command
from tpo_jax.io.files import write_json
from tpo_jax.io.paths import check_config, define_path
from tpo_jax.models.config import ModelConfig, check_source
from tpo_jax.models.lora import join, merge
from tpo_jax.parallel import distributed
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import check_rows, parameter_shardings, to_global
from tpo_jax.training import loop, reference, run_page
from tpo_jax.training.experiment import Experiment, read
from tpo_jax.training.goodput import GoodputJournal
from tpo_jax.training.state import (
    TrainState,
    learning_rate_schedule,
    make_optimizer,
    new_state,
    split_params,
)
from tpo_jax.training.step import make_scorer, make_step
from tpo_jax.training.watch import Watch

# What may differ between a checkpoint and the run that continues it: where and how fast, never
# what.
FREE = (
    "mesh",
    "compute.remat",
    "compute.head_chunk",
    "compute.micro_batches",
    "compute.attention",
    "compute.scan",
    "data.workers",
    "data.cache_mib",
    "data.on_error",
    "data.verify_shards",
    "data.reference",
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
)


def load_weights(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[ModelConfig, dict, Path]:
    """Return model config, parameters on the mesh and tokenizer directory."""
    given = experiment.source
    check_source(given.checkpoint, given.preset)
    settings: dict[str, Any] = {"max_length": given.max_length} if given.max_length else {}
    if given.checkpoint:
        loaded = load_model(given.checkpoint, mesh=mesh, dtype=None, **settings)
        return loaded.config, loaded.params, loaded.tokenizer_directory
    model = dataclasses.replace(families.preset(given.preset), **settings)
    if not given.tokenizer:
        raise InputError(f"model.preset={given.preset} needs model.tokenizer, a directory")
    # Random weights have no vocabulary of their own: a larger tokenizer makes room for itself.
    ids = load_tokenizer(given.tokenizer).get_vocab_size()
    size = max(model.decoder.vocab_size, -(-ids // 128) * 128)
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocab_size=size))
    init = lambda: families.init_params(model, experiment.schedule.seed)  # noqa: E731
    shardings = parameter_shardings(mesh, jax.eval_shape(init))
    return model, jax.jit(init, out_shardings=shardings)(), Path(given.tokenizer)


def identity(experiment: Experiment, model: ModelConfig, params, pipeline: Pipeline):
    """What a run's numbers depend on beyond its config: hashes of weights, shards and texts."""
    data = pipeline.config
    return {
        "weights": weights_fingerprint(params),
        "model": dataclasses.asdict(model),
        "shards": pipeline.shards.fingerprint,
        "pairs": hashlib.sha256(pipeline.pairs.tobytes()).hexdigest(),
        "sampling": [data.sampling, data.num_frames],
        "template": [data.time_instruction, data.prompt_style, data.pairs_per_row > 1],
        "tokenizer": hashlib.sha256(pipeline.tokenizer.to_str().encode()).hexdigest(),
        "dtype": experiment.compute.dtype,
    }


def reference_logps(experiment: Experiment, model, params, pipeline, mesh, key: dict):
    """The cached log-probabilities of the initial weights, computed if nobody did so before."""
    data = pipeline.config
    key = key | ({"phrases": True} if data.phrases else {})
    given = experiment.reference.reference
    path = Path(given) if given else reference.cache_path(Path(data.shards), key)
    # Hosts whose disks differ must still agree on who computes.
    if given or multihost_utils.process_allgather(np.array(path.exists())).all():
        return reference.load(path, key, len(pipeline.shards))
    print(f"computing reference log-probabilities: {path}", file=sys.stderr)
    once = dataclasses.replace(data, shuffle=False, num_epochs=1)
    batches = Pipeline(once, model, pipeline.tokenizer, jax.process_index(), jax.process_count())
    score = make_scorer(model, experiment.compute)
    with contextlib.closing(iter(batches)) as parts:
        logps = reference.compute(
            score, params, (to_global(b, mesh) for b in parts), len(pipeline.shards), mesh
        )
    if not path.exists():
        reference.save(path, key, logps)
    return logps


def frozen_copy(params: dict, dtype: str) -> dict:
    """Parameters in another dtype, on the same devices, that outlive a donation of these."""
    copy = lambda p: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), p)  # noqa: E731
    return jax.jit(copy, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params)


def check_same_run(saved: dict, meta: dict) -> None:
    """Raises InputError where a checkpoint is of other data or weights, or its config differs in
    more than `FREE`.
    """
    ours, theirs = meta["identity"], saved["identity"]
    if other := [name for name in ours if ours[name] != theirs.get(name)]:
        raise InputError(
            f"--workdir holds a checkpoint of a run with other {', '.join(other)}; use another one"
        )

    def fields(tree, prefix=""):
        for name, value in tree.items():
            if f"{prefix}{name}" in FREE:
                continue
            if isinstance(value, dict):
                yield from fields(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    ours, theirs = dict(fields(meta["config"])), dict(fields(saved["config"]))
    differs = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    if differs:
        changes = ", ".join(f"{n}: {theirs.get(n)!r} -> {ours.get(n)!r}" for n in differs)
        raise InputError(
            f"--workdir holds a checkpoint of another run ({changes}); use another one"
        )


def train(config: ConfigDict, workdir: Path, watch: Watch | None = None) -> Path | None:
    """Runs (or continues) the experiment of `config`; returns the directory of the trained model,
    None if it was asked to stop before the end.
    """
    started, watch = time.time(), watch or Watch()
    check_config(config)
    experiment = read(config)
    objective, compute, lora = experiment.objective, experiment.compute, experiment.lora
    mesh = make_mesh(dataclasses.asdict(experiment.mesh))
    model, params, tokenizer = load_weights(experiment, mesh)

    pipeline = Pipeline(
        experiment.data,
        model,
        load_tokenizer(tokenizer, model),
        jax.process_index(),
        jax.process_count(),
    )
    rows = experiment.data.batch_size // experiment.data.pairs_per_row
    check_rows(rows, mesh, compute.micro_batches)
    if compute.head_chunk and pipeline.max_response % compute.head_chunk:
        raise InputError(
            f"compute.head_chunk={compute.head_chunk} must divide the {pipeline.max_response} "
            "positions of a response"
        )
    length = loop.LoopConfig(
        experiment.schedule.num_steps or len(pipeline), experiment.schedule.log_every
    )
    if watch.profiled.start > length.num_steps:
        raise InputError(
            f"--profile_steps={watch.profile_steps}: the run ends at step {length.num_steps}"
        )

    schedule = learning_rate_schedule(
        experiment.optimizer.learning_rate, length.num_steps, experiment.optimizer.warmup_ratio
    )
    optimizer, freeze = make_optimizer(experiment.optimizer, schedule), experiment.optimizer.freeze
    seed = experiment.schedule.seed
    initial = lambda p: new_state(p, optimizer, freeze, lora, seed)  # noqa: E731
    abstract = jax.eval_shape(initial, params)
    shardings = parameter_shardings(mesh, abstract)
    step = jax.jit(
        make_step(model, objective, compute, optimizer, lora),
        donate_argnums=0,
        out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())),
    )

    key, logps = identity(experiment, model, params, pipeline), None
    meta = {"config": json.loads(config.to_json_best_effort()), "identity": key}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be a directory: {error.strerror}") from error
    checkpoints = TrainCheckpoints(workdir / "checkpoints", experiment.checkpoints)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        batches = stack.enter_context(contextlib.closing(iter(pipeline)))
        if saved := checkpoints.latest_meta():
            check_same_run(saved, meta)
        elif (workdir / "config.json").exists():
            print(f"{workdir} holds no checkpoint: starting at step 0", file=sys.stderr)
        if objective.uses_live_reference:
            trained, _ = split_params(params, freeze, lora)
            step = functools.partial(step, reference=frozen_copy(trained, compute.dtype))
        elif objective.uses_reference:
            logps = reference_logps(experiment, model, params, pipeline, mesh, key)
        if saved:
            del params  # the state that is read takes their place on the devices
            where = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
            )
            restored, position = checkpoints.restore(vars(where))
            state = TrainState(**restored)
            batches.set_state(position)
            done = int(state.step)
            print(f"resuming at step {done}", file=sys.stderr)
            if watch.profiled and watch.profiled[-1] <= done:
                print(
                    f"--profile_steps={watch.profile_steps}: already done, nothing is traced",
                    file=sys.stderr,
                )
        else:
            state = jax.jit(initial, out_shardings=shardings, donate_argnums=0)(params)
            if jax.process_index() == 0:
                write_json(workdir / "config.json", meta["config"])
        journal = None
        if jax.process_index() == 0:
            journal = stack.enter_context(contextlib.closing(GoodputJournal(workdir, started)))
        state = loop.run(
            length,
            step,
            state,
            batches,
            pipeline.shards.index,
            logps,
            mesh,
            checkpoints,
            meta,
            schedule,
            workdir,
            watch,
            journal,
        )
    if int(state.step) < length.num_steps:
        print(f"stopped at step {int(state.step)}; run again to go on", file=sys.stderr)
        return None
    trained = join(state.params, state.frozen)
    if lora.rank:
        base = experiment.source.checkpoint
        save_adapters(workdir / "adapters", model, lora, state.params, base)
        trained = merge(trained, lora)
    save_model(workdir / "model", model, trained, tokenizer)
    return workdir / "model"


def main() -> None:
    """The command."""
    distributed.start(_DISTRIBUTED.value)
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
    _PROFILE_STEPS = flags.DEFINE_string(
        "profile_steps", "", "FIRST:LAST, steps to trace into workdir/profile"
    )
    _WANDB_PROJECT = flags.DEFINE_string(
        "wandb_project", "", "write metrics to this project of Weights & Biases, too"
    )
    flags.mark_flag_as_required("config")
    run_command(main)
