"""A table or figure of the paper: `python -m tpo_jax.reproduce --item=table1 [--scale=miniature]`;
or a page on the method that the paper does not have, such as `--item=method`.

`miniature` trains small models of both families on the synthetic world, several seeds each, and
writes `pages/{item}.csv`, `.png` and `.md` in the working directory, the paper's numbers beside
ours. Finished stages are kept; a second start resumes where the first one stopped.
`7b` prints the commands at the paper's own size and what `plan` says they cost; `--run` runs them.
Standard output is Markdown.
"""

import os
import sys
from pathlib import Path

from absl import flags

from tpo_jax.errors import InputError, run_command
from tpo_jax.io.paths import define_path

TABLES = tuple(f"table{n}" for n in range(1, 6))
FIGURES = tuple(f"figure{n}" for n in (2, 3, 5, 6))
METHOD = ("method", "judge", "preference")  # in miniature only

_ITEM = flags.DEFINE_enum(
    "item",
    None,
    (*TABLES, *FIGURES, "all", *METHOD),
    "table or figure of the paper, all of them, or a page on the method",
    required=True,
)
_SCALE = flags.DEFINE_enum("scale", "miniature", ["miniature", "7b"], "size of the models")
_WORKDIR = define_path(
    "workdir", None, "Directory of all results; by default reproduction, or reproduction_7b."
)
_SEEDS = flags.DEFINE_list("seeds", [str(n) for n in range(81, 89)], "miniature: base models.")
_BESIDES = flags.DEFINE_bool("besides", False, "miniature: add rows that the paper does not have.")
_PAGES_ONLY = flags.DEFINE_bool(
    "pages_only", False, "miniature: train nothing, write the pages from the results there are."
)
_SIZE = flags.DEFINE_enum(
    "size", "full", ["full", "smoke"], "miniature: smoke only shows that every stage runs."
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    os.cpu_count() or 1,
    "miniature: seeds at the same time.",
    lower_bound=1,
)
_RUN = flags.DEFINE_bool("run", False, "7b: run the commands.")
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
    "configs": "folder configs of a clone, if it is not in the current directory",
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
    """Run what is missing and print the pages."""
    # Imported here: worker processes start from this module, and those that render need no JAX.
    import jax

    from tpo_jax.study import pages, runs, settings
    from tpo_jax.study.items import needed
    from tpo_jax.train import train

    workdir, seeds = Path(_WORKDIR.value or "reproduction").absolute(), _seeds()
    choices = settings.CHOICES[_SIZE.value]
    runs.check_workdir(workdir, choices, make=not _PAGES_ONLY.value)
    if not _PAGES_ONLY.value:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        wanted = set().union(*(needed(item, _BESIDES.value) for item in items))
        todo = settings.runs(wanted, seeds)
        runs.carry_out_all(todo, workdir, choices, train, min(_WORKERS.value, len(seeds)))
    left_out: list[InputError] = []
    for item in items:
        try:
            print(pages.write(item, workdir, seeds), end="\n\n")
        except InputError as error:
            if len(left_out) == len(items) - 1:
                raise
            left_out.append(error)
            print(f"left out: {error}", file=sys.stderr)
    print(f"CSV, PNG and Markdown: {workdir / 'pages'}", file=sys.stderr)


def seven_b(items: list[str]) -> None:
    """Print the commands, and run them if asked to."""
    from tpo_jax.study import full_size, full_size_pages

    values = flags.FLAGS.flag_values_dict()
    given = {name: str(values[name]) for name in _PLACES if values[name]}
    places = full_size.Places(**given, workdir=str(_WORKDIR.value or "reproduction_7b"))
    topology = _TOPOLOGY.value
    hours = full_size.CHIP_HOURS if topology == full_size.TOPOLOGY else {}
    if _PLAN.value:
        families = full_size.trained_families(items)
        hours = {name: full_size.planned(name, topology, places.configs) for name in families}
    for item in items:
        print(full_size.page(item, places, topology, hours))
    if _RUN.value:
        for item in items:
            if lacking := full_size.missing(item, places):
                raise InputError(f"--item={item} --scale=7b: {'; '.join(lacking)}")
        for item in items:
            full_size.run(item, places, topology)
    for item in items:
        if page := full_size_pages.write(item, places):
            print(page, end="\n\n")


def main() -> None:
    """Run the command."""
    others = {"miniature": _SEVEN_B, "7b": _MINIATURE}[_SCALE.value]
    if given := [name for name in others if flags.FLAGS[name].present]:
        raise InputError(f"--{given[0]} is not for --scale={_SCALE.value}")
    if _ITEM.value in METHOD and _SCALE.value != "miniature":
        raise InputError(f"--item={_ITEM.value} is for --scale=miniature")
    items = [*TABLES, *FIGURES] if _ITEM.value == "all" else [_ITEM.value]
    (miniature if _SCALE.value == "miniature" else seven_b)(items)


if __name__ == "__main__":
    run_command(main)
