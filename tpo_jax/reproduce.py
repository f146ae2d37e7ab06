"""A table or figure of the paper: `python -m tpo_jax.reproduce --item=table1 [--scale=miniature]`.

`miniature` trains small models of both families on the embedded world, several seeds each, and
writes `pages/{item}.csv`, `.png` and `.md` in the working directory, the paper's numbers beside
ours. What is done is used again; a second start goes on where the first one stopped.
`7b` prints the commands of the paper's own size and what `plan` says they cost, and with `--run`
carries them out. Standard output is Markdown.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from absl import flags

from tpo_jax.errors import InputError, run_command
from tpo_jax.io.paths import define_path

TABLES = tuple(f"table{n}" for n in range(1, 6))
FIGURES = tuple(f"figure{n}" for n in (2, 3, 5, 6))

_ITEM = flags.DEFINE_enum("item", None, (*TABLES, *FIGURES, "all"), "What.", required=True)
_SCALE = flags.DEFINE_enum("scale", "miniature", ["miniature", "7b"], "Which models.")
_WORKDIR = define_path(
    "workdir", None, "Where everything goes; by default reproduction, or reproduction_7b."
)
_SEEDS = flags.DEFINE_list("seeds", ["41", "42", "43", "44", "45"], "miniature: base models.")
_BESIDES = flags.DEFINE_bool("besides", False, "miniature: also rows that the paper does not have.")
_PAGES_ONLY = flags.DEFINE_bool(
    "pages_only", False, "miniature: run nothing, write the pages of what is there."
)
_SIZE = flags.DEFINE_enum(
    "size", "full", ["full", "smoke"], "miniature: smoke shows that every stage runs, no more."
)
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "miniature: seeds at a time, a core each.", lower_bound=1
)
_RUN = flags.DEFINE_bool("run", False, "7b: carry the commands out.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "7b: the slice that trains.")
_PLAN = flags.DEFINE_bool("plan", False, "7b: ask `plan` for the chip-hours; takes minutes.")
_PLACES = {
    "checkpoint": "the base model",
    "shards": "preference pairs; without it they are curated from --videos",
    "videos": "folder of videos to curate pairs from",
    "written": "answers of another model, as shards, for SFT_LLM",
    "judged": "judge-scored pairs of sampled answers, as shards, for Hound-DPO",
    "benchmarks": "folder of the folders longvideobench, mlvu and videomme",
    "haystack": "a movie, for figure3",
    "needles": "its needles, for figure3",
}
for _name, _what in _PLACES.items():
    define_path(_name, None, f"7b: {_what}.")
_MINIATURE = ("seeds", "besides", "pages_only", "size", "workers")
_SEVEN_B = ("run", "topology", "plan", *_PLACES)


def _seeds() -> list[int]:
    try:
        seeds = [int(seed) for seed in _SEEDS.value]
    except ValueError:
        raise InputError(f"--seeds={','.join(_SEEDS.value)} must be whole numbers") from None
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(
            f"--seeds={','.join(_SEEDS.value)} must be different numbers, at least one"
        )
    return seeds


def miniature(items: list[str]) -> None:
    """Runs what is missing and prints the pages."""
    # Imported here: processes start from this module, those that render need none of it.
    import jax

    from tpo_jax.study import items as study_items
    from tpo_jax.study import reproduction
    from tpo_jax.study import runs as study_runs
    from tpo_jax.study import settings as study
    from tpo_jax.train import train

    workdir, seeds = Path(_WORKDIR.value or "reproduction").absolute(), _seeds()
    choices = study.CHOICES[_SIZE.value]
    study_runs.check_workdir(workdir, choices, make=not _PAGES_ONLY.value)
    if not _PAGES_ONLY.value:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        wanted = set().union(*(study_items.needed(item, _BESIDES.value) for item in items))
        todo = study.runs(wanted, seeds)
        study_runs.carry_out_all(todo, workdir, choices, train, min(_WORKERS.value, len(seeds)))
    left_out: list[InputError] = []
    for item in items:
        try:
            print(reproduction.write(item, workdir, seeds), end="\n\n")
        except InputError as error:
            if len(left_out) == len(items) - 1:
                raise
            left_out.append(error)
            print(f"left out: {error}", file=sys.stderr)
    print(f"CSV, PNG and Markdown: {workdir / 'pages'}", file=sys.stderr)


def _planned(family: str, topology: str) -> float:
    """Chip-hours for 10,000 pairs, by `plan` itself."""
    from tpo_jax.study import full_size

    arguments = full_size.plan_arguments(family, topology)
    command = [sys.executable, "-m", "tpo_jax.plan", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise InputError("--plan: see the message of plan above")
    plan = json.loads(done.stdout)
    if not plan["fits"]:
        raise InputError(f"--topology={topology}: {family}_7b does not fit; take a larger slice")
    return plan["chip_hours"]


def seven_b(items: list[str]) -> None:
    """Prints the commands, and runs them if asked to."""
    from tpo_jax.study import full_size, full_size_results

    values = flags.FLAGS.flag_values_dict()
    given = {name: str(values[name] or "") for name in _PLACES}
    places = full_size.Places(**given, workdir=str(_WORKDIR.value or "reproduction_7b"))
    topology = _TOPOLOGY.value
    hours = full_size.CHIP_HOURS if topology == full_size.TOPOLOGY else {}
    if _PLAN.value:
        trained = [item for item in items if item in full_size.ITEMS]
        families = sorted({full_size.family(item) for item in trained})
        hours = {family: _planned(family, topology) for family in families}
    for item in items:
        print(full_size.page(item, places, topology, hours))
    if _RUN.value:
        for item in items:
            if lacking := full_size.missing(item, places):
                raise InputError(f"--item={item} --scale=7b: {'; '.join(lacking)}")
        for item in items:
            full_size.run(item, places, topology)
    for item in items:
        if page := full_size_results.write(item, places):
            print(page, end="\n\n")


def main() -> None:
    """The command."""
    others = {"miniature": _SEVEN_B, "7b": _MINIATURE}[_SCALE.value]
    if given := [name for name in others if flags.FLAGS[name].present]:
        raise InputError(f"--{given[0]} is not for --scale={_SCALE.value}")
    items = [*TABLES, *FIGURES] if _ITEM.value == "all" else [_ITEM.value]
    (miniature if _SCALE.value == "miniature" else seven_b)(items)


if __name__ == "__main__":
    run_command(main)
