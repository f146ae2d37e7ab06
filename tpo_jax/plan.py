"""Plan an experiment on a TPU slice without a TPU: does it fit, and what does a step cost?

`python -m tpo_jax.plan --config=FILE[:variant] --topology=v5e:4x4 [--config.a.b=…] [--json]`.

`--of=generate`, `score`, `evaluate`, `curate` or `serve` plans that command instead of `train`: its
programs for one batch of `--rows` videos, with their caches. `--search=rows` doubles the rows as
long as they fit, `--questions` adds the hours that this many questions take.

`--search=frames` finds the most frames that fit the slice, `--search=topology` the smallest slice
of a kind (`--topology=v5e`) that the experiment fits, `--search=fastest` the mesh, remat policy,
micro-batches and moments with the lowest time on a slice, and prints their flags. Where batches
have several numbers of frames, the largest is planned.

The step that `train` runs is compiled by the TPU compiler (`pip install libtpu`), on any Linux
machine; a model of 7B parameters takes a minute or more. Exit code 1: it does not fit.
"""

import dataclasses
import json
import os
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from tpo_jax import families
from tpo_jax.checkpoints.models import load_config
from tpo_jax.data.frame_counts import frame_counts
from tpo_jax.errors import InputError, run_command
from tpo_jax.io.paths import define_path, local_path
from tpo_jax.models.config import ModelConfig, check_source
from tpo_jax.parallel.mesh import AXES, mesh_shape
from tpo_jax.planning.chips import CHIPS, devices_of
from tpo_jax.planning.fastest import fastest, settings
from tpo_jax.planning.inference import COMMANDS, compile_command
from tpo_jax.planning.plan import RESPONSE_TOKENS, Plan, compile_step
from tpo_jax.planning.program import GIB
from tpo_jax.planning.search import most_frames, most_rows, smallest_slice


def model_of(config: ConfigDict) -> ModelConfig:
    """Return the model config of an experiment, without reading weights.

    Raises:
        InputError: no model, two models, or one that does not exist.
    """
    given = config.model
    check_source(given.checkpoint, given.preset)
    settings = {"max_length": given.max_length} if given.max_length else {}
    if given.checkpoint:
        checkpoint = local_path("model.checkpoint", given.checkpoint)
        return load_config(checkpoint, given.tower, **settings)
    return dataclasses.replace(families.preset(given.preset), **settings)


def report(plan: Plan, questions: int = 0) -> str:
    """Return the plan as text, with the hours that `questions` take where it is above 0."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1)
    what = {"train": "step", "score": "batch"}.get(plan.of)
    batch = f"{what}: {plan.pairs} pairs" if what else f"batch: {plan.pairs} questions"
    answers = f"answers {'2 x ' if what else 'of at most '}{plan.response} tokens"
    lines = [
        f"{plan.topology}: {plan.chips} chips, mesh {mesh or 'of one'}",
        f"{batch} of {plan.frames} frames, prefix {plan.prefix}, {answers}",
    ]
    if not plan.memory:
        return "\n".join(
            [
                *lines,
                f"does NOT fit: {plan.peak / GIB:.2f} GiB per chip, limit {plan.limit / GIB:.2f}",
            ]
        )
    kinds = ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.memory.items())
    lines.append(
        f"memory per device: peak {plan.peak / GIB:.2f} GiB of {plan.limit / GIB:.2f}, headroom "
        f"{(plan.limit - plan.peak) / GIB:.2f} ({kinds})"
    )
    if plan.seconds:
        lines += measured(plan)
    else:
        lines.append("FLOPs, traffic and time: unknown, jaxlib cannot read this compiled program")
    if questions:
        hours, asked = hours_of(plan, questions), "pairs" if what else "questions"
        known = f"{hours:.1f} hours on this slice at that rate" if hours else "hours unknown"
        lines.append(f"{questions:,} {asked}: {known}")
    lines += [f"flags: {plan.flags}"] * bool(plan.flags)
    lines.append("fits" if plan.fits else "does NOT fit")
    return "\n".join(lines)


def hours_of(plan: Plan, questions: int) -> float | None:
    """Return the hours that `questions` take; None where the compiled program cannot be read."""
    return questions / plan.pairs_per_hour if plan.seconds else None


def measured(plan: Plan) -> list[str]:
    """Return the lines on FLOPs, collectives and time."""
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in plan.seconds.items())
    step, longest, done = "step", "a step takes the longest of them", "pairs"
    if plan.of not in ("train", "score"):
        step, longest, done = "batch", "a batch takes both", "questions"
    twice = (
        f"of these again in the backward pass: {plan.recomputed:.3e} for compute.remat, "
        f"{plan.scores:.3e} for scores that two kernels of attention compute"
    )
    return [
        f"FLOPs per {step}: {plan.flops:.3e} compiled, {plan.minimum_flops:.3e} at least by "
        f"formula: {plan.flops / plan.minimum_flops:.2f} times",
        *[twice] * (plan.of == "train"),
        *(
            f"{kind}: {count:.0f} per {step}, {size / 1e9:.2f} GB per device"
            for kind, (count, size) in sorted(plan.collectives.items())
        ),
        f"roofline: {times}; {plan.pairs_per_hour:.0f} {done}/h, {plan.chip_hours:.1f} chip-hours "
        f"for 10,000 {done} if {longest}, everything at its peak rate",
    ]


def tell(line: str) -> None:
    """Print a line of progress to standard error."""
    print(f"plan: {line}", file=sys.stderr, flush=True)


def planned(config: ConfigDict, topology: str, rows: int = 0, **changes: object) -> Plan:
    """Compile an experiment with some fields changed, or a command for `rows` videos, and return
    its plan.
    """
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    if _OF.value != "train":
        rows = rows or _ROWS.value
        plan = compile_command(config, model_of(config), topology, _OF.value, rows)
    else:
        cache = None if _HLO.value else _CACHE.value
        plan, compiled = compile_step(config, model_of(config), topology, _SLICES.value, cache)
        if compiled and _HLO.value:
            with open(_HLO.value, "w", encoding="utf-8") as file:
                file.write(compiled.as_text())
    videos = "" if plan.of == "train" else f"{plan.rows} at a time, "
    tell(
        f"{plan.topology}, {videos}{plan.frames} frames: peak {plan.peak / GIB:.2f} GiB of "
        f"{plan.limit / GIB:.2f} per chip"
    )
    return plan


def search_frames(config: ConfigDict, topology: str) -> Plan:
    """Return the plan of the most frames that fit, or of the fewest where none do."""
    if config.data.max_prefix:
        raise InputError("--search=frames needs data.max_prefix=0: the prefix grows with it")
    model = model_of(config)
    devices = len(devices_of(topology, _SLICES.value))
    context = mesh_shape(config.mesh.to_dict(), devices)[AXES.index("context")]
    best, beyond = most_frames(
        lambda frames: planned(config, topology, **{"data.num_frames": frames}),
        model,
        config.data.prefix_multiple,
        context,
        config.data.num_frames,
        config.data.max_response or RESPONSE_TOKENS,
    )
    end = f"{beyond.frames} do not" if beyond else "the model's context ends there"
    tell(f"{best.frames} frames fit, {end}" if best else "no number of frames fits")
    plan = best or beyond
    assert plan is not None  # one of the two was compiled
    return plan


def search_topology(config: ConfigDict, kind: str) -> Plan:
    """Return the plan on the smallest slice of a kind that fits, or on the largest one that can
    run the experiment where none fits.
    """
    return smallest_slice(lambda topology: planned(config, topology), kind, tell)


def search_rows(config: ConfigDict, topology: str) -> Plan:
    """Return the plan of the largest batch that fits, or of the smallest where none does."""
    return most_rows(lambda rows: planned(config, topology, rows), _ROWS.value or 1)


def check_flags() -> None:
    """Raise InputError for flags that have no effect together."""
    of, search = _OF.value, _SEARCH.value
    if of == "train":
        for flag, given in (
            ("--rows", _ROWS.value > 0),
            ("--questions", _QUESTIONS.value > 0),
            ("--search=rows", search == "rows"),
        ):
            if given:
                raise InputError(f"{flag} is for --of; pairs of a step are train.batch_size")
        return
    if search == "rows" and not COMMANDS[of].flag:
        raise InputError(f"--search=rows: {of} takes one video at a time")
    for flag, given in (
        ("--slices", _SLICES.value > 1),
        ("--hlo", _HLO.value is not None),
        (f"--search={search}", search in ("frames", "fastest")),
    ):
        if given:
            raise InputError(f"{flag} is for the step of train, not for --of={of}")


def search_fastest(config: ConfigDict, topology: str) -> Plan:
    """Return the plan of the fastest settings that fit, or of the smallest where none do."""
    model, devices = model_of(config), devices_of(topology, _SLICES.value)
    chip = CHIPS[topology.partition(":")[0]]
    setting, plan = fastest(
        lambda setting: planned(config, topology, **setting.changes),
        settings(config, model, devices, chip),
        chip.hbm * GIB,
        tell,
    )
    plan.flags = setting.flags
    return plan


def main() -> int:
    """Plan or search, and print the result."""
    # libtpu ends the process at a flag of another compiler; its own are in LIBTPU_INIT_ARGS.
    os.environ.pop("XLA_FLAGS", None)
    check_flags()
    searches = {
        "frames": search_frames,
        "rows": search_rows,
        "topology": search_topology,
        "fastest": search_fastest,
    }
    search, config = searches.get(_SEARCH.value, planned), _CONFIG.value
    # Of several numbers of frames, the largest takes the most memory and time.
    frames = frame_counts(config.data.num_frames, config.data.num_frames_weights)
    config.data.num_frames, config.data.num_frames_weights = frames.most, ()
    plan = search(config, _TOPOLOGY.value)
    if _JSON.value:
        hours = {"hours": hours_of(plan, _QUESTIONS.value)} if _QUESTIONS.value else {}
        print(json.dumps(dataclasses.asdict(plan) | hours, indent=2))
    else:
        print(report(plan, _QUESTIONS.value))
    return 0 if plan.fits else 1


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment", lock_config=True)
    _TOPOLOGY = flags.DEFINE_string(
        "topology",
        None,
        "the slice, as v5e:4x4, v5p:2x2x1 or v6e:2x4; with --search=topology its kind alone, v5e",
        required=True,
    )
    _SEARCH = flags.DEFINE_enum(
        "search", "", ["", "frames", "rows", "topology", "fastest"], "what to look for"
    )
    _OF = flags.DEFINE_enum("of", "train", ["train", *COMMANDS], "whose programs are compiled")
    _ROWS = flags.DEFINE_integer("rows", 0, "videos of a batch; 0: the command's default", 0)
    _QUESTIONS = flags.DEFINE_integer("questions", 0, "with --of: also tell their hours", 0)
    _SLICES = flags.DEFINE_integer("slices", 1, "how many slices", lower_bound=1)
    _JSON = flags.DEFINE_bool("json", False, "print JSON")
    _CACHE = define_path(
        "cache",
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")) + "/tpo_jax/plans",
        "folder of the figures of steps that were compiled before",
    )
    _HLO = define_path("hlo", None, "also write the compiled program to this file")
    flags.mark_flag_as_required("config")
    run_command(main)
