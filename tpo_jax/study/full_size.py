"""The paper's tables and figures at 7B: the commands of every step, and what they cost by `plan`.

The commands are printed for a shell, or run from here.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tpo_jax.checkpoints.models import load_config
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import LlavaQwenConfig
from tpo_jax.planning.chips import chips_of
from tpo_jax.study.items import ITEMS
from tpo_jax.study.rows import ROWS

TOPOLOGY = "v5e:4x4"
BATCH_SIZE = 64  # of the configs
# On `TOPOLOGY`, for 10,000 pairs, by `plan` with jax 0.10.2 and libtpu 0.0.51. LongVA's rows are
# shorter.
CHIP_HOURS = {"longva": 3.9, "llava_video": 5.1}

PAPER_BENCHMARKS = {"LVB": "longvideobench_val_v", "MLVU": "mlvu_dev", "VMME": "videomme"}
SUBTITLED = {"VMME with subtitles": "videomme_w_subtitle"}
FOLDERS = {
    "longvideobench_val_v": "longvideobench",
    "mlvu_dev": "mlvu",
    "videomme": "videomme",
    "videomme_w_subtitle": "videomme",
}


@dataclasses.dataclass(frozen=True)
class Places:
    """What a user supplies, as paths.

    Attributes:
        checkpoint: the base model, of either layout.
        shards: preference pairs, as `prepare` or `curate` writes them.
        written: answers of another model, for SFT_LLM.
        judged: judge-scored pairs of sampled answers, for Hound-DPO.
        benchmarks: folder of the benchmarks' folders.
        videos: folder of videos to curate pairs from, where `shards` is not given.
        haystack: a movie, for Figure 3.
        needles: its needles.
        workdir: of all results.
        configs: folder of the config files, part of a clone of the repository.
    """

    checkpoint: str = ""
    shards: str = ""
    written: str = ""
    judged: str = ""
    benchmarks: str = ""
    videos: str = ""
    haystack: str = ""
    needles: str = ""
    workdir: str = "reproduction_7b"
    configs: str = "configs"


CURATED_ONLY = ("figure5", "figure6")  # items about the pairs, without a model
TOWERS = {"longva": "clip", "llava_video": "siglip"}
FIGURE2_FRAMES = (16, 32, 64, 96, 128)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the package with its arguments, and the file or directory it makes."""

    name: str
    arguments: tuple[str, ...]
    makes: str
    chip_hours: float = 0.0

    def __str__(self) -> str:
        return shlex.join(("python", "-m", f"tpo_jax.{self.name}", *self.arguments))


def fitting(topology: str) -> tuple[str, ...]:
    """Return the flags of `train` with which chips of 16 GB suffice: one pair at a time on each.

    Raises:
        InputError: no such slice, or a step's pairs do not divide over its chips.
    """
    if BATCH_SIZE % (chips := chips_of(topology)):
        raise InputError(
            f"--topology={topology}: {chips} chips do not share {BATCH_SIZE} pairs, one each at a "
            "time; choose a slice of 1, 2, 4, … or 64 chips"
        )
    return (
        f"--config.compute.micro_batches={BATCH_SIZE // chips}",
        "--config.compute.remat=attention:save",
    )


def plan_arguments(family: str, topology: str, configs: str = "configs") -> tuple[str, ...]:
    """Return the arguments of `plan` for TPO of a family."""
    return (
        f"--config={configs}/{family}_tpo.py",
        f"--config.model.preset={family}_7b",
        f"--topology={topology}",
        *fitting(topology),
    )


def planned(family: str, topology: str, configs: str) -> float:
    """Return the chip-hours of TPO on 10,000 pairs by running `plan`.

    Raises:
        InputError: `plan` fails, or the model does not fit the slice.
    """
    arguments = plan_arguments(family, topology, configs)
    line = [sys.executable, "-m", "tpo_jax.plan", *arguments, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise InputError("--plan: see the message of plan above")
    plan = json.loads(done.stdout)
    if not plan["fits"]:
        raise InputError(f"--topology={topology}: {family}_7b does not fit; choose a larger slice")
    return plan["chip_hours"]


def trained_families(items: Iterable[str]) -> list[str]:
    """Return the families whose models are trained for some items."""
    return sorted({ITEMS[item].family for item in items if item not in CURATED_ONLY})


def place(item: str, row: str, places: Places) -> str:
    """Return the directory of a row: its training and, by benchmark, its evaluations."""
    return f"{places.workdir}/{ITEMS[item].family}_{row}"


def curated(item: str, places: Places) -> str:
    """Return the directory of the pairs that are curated for an item."""
    return f"{places.workdir}/curated_{ITEMS[item].family}"


def evaluation(folder: str | Path, benchmark: str, num_frames: int = 0) -> str:
    """Return the directory of one evaluation below that of its row."""
    return f"{folder}/{benchmark}" + (f"_{num_frames}" if num_frames else "")


def commands(
    item: str,
    places: Places,
    topology: str = TOPOLOGY,
    chip_hours: Mapping[str, float] = CHIP_HOURS,
) -> list[Command]:
    """Return the commands of an item, in order; places that are not given are in capitals.

    Args:
        item: one of `ITEMS`.
        places: what the user supplies.
        topology: of the slice that trains.
        chip_hours: of training on 10,000 pairs there, by family; unknown counts as 0.
    """
    given = {
        field.name: getattr(places, field.name) or field.name.upper()
        for field in dataclasses.fields(places)
    }
    name = ITEMS[item].family
    made = curated(item, places)
    curate = Command(
        "curate",
        (
            f"--config={places.configs}/curate_local.py",
            f"--workdir={made}",
            f"--config.videos.folder={given['videos']}",
            f"--config.local.checkpoint={given['checkpoint']}",
            "--config.balance.pairs=10000",
        ),
        f"{made}/shards",
    )
    if item in CURATED_ONLY:
        return [curate]
    found = [] if places.shards else [curate]
    given["shards"] = places.shards or curate.makes
    for row in ITEMS[item].rows:
        model = f"{place(item, row, places)}/model"
        if not (training := ROWS[row].full_size):
            model = given["checkpoint"]
        else:
            arguments = (
                f"--config={places.configs}/{name}_tpo.py:{training.variant or row}",
                f"--workdir={place(item, row, places)}",
                f"--config.model.checkpoint={given['checkpoint']}",
                f"--config.data.shards={given[training.shards]}",
                *fitting(topology),
            )
            cost = chip_hours.get(name, 0.0) * training.pairs / 10_000
            found.append(Command("train", arguments, model, cost))
        found += _evaluations(item, place(item, row, places), model, given)
    return found


def _evaluations(item: str, folder: str, model: str, given: dict[str, str]) -> Iterator[Command]:
    if item == "figure3":
        output = f"{folder}/niah"
        yield Command(
            "evaluate",
            (
                "niah",
                f"--haystack={given['haystack']}",
                f"--needles={given['needles']}",
                f"--checkpoint={model}",
                f"--output={output}",
            ),
            f"{output}/summary.json",
        )
        return
    names = list(PAPER_BENCHMARKS.values())
    settings = [(name, 0) for name in names]
    if item in ("table1", "table2"):
        settings += [(name, 0) for name in SUBTITLED.values()]
    if item == "figure2":
        settings = [("mlvu_dev", n) for n in FIGURE2_FRAMES]
    for name, num_frames in settings:
        output = evaluation(folder, name, num_frames)
        arguments = (
            "run",
            f"--benchmark={name}",
            f"--data={given['benchmarks']}/{FOLDERS[name]}",
            f"--checkpoint={model}",
            f"--output={output}",
            "--scorer=paper_era",
            "--time_instruction=none",
            *([f"--num_frames={num_frames}"] if num_frames else []),
        )
        yield Command("evaluate", arguments, f"{output}/results.json")


def missing(item: str, places: Places) -> list[str]:
    """Return what an item needs and the places lack: flag and reason.

    Raises:
        InputError: the base model cannot be read.
    """
    wanted = {"checkpoint"}
    if item in CURATED_ONLY:
        wanted.add("videos")
    elif item == "figure3":
        wanted |= {"haystack", "needles"}
    else:
        wanted.add("benchmarks")
    if item not in CURATED_ONLY:
        trainings = (ROWS[row].full_size for row in ITEMS[item].rows)
        wanted |= {training.shards for training in trainings if training}
    if "shards" in wanted and places.videos:
        wanted = wanted - {"shards"} | {"videos"}
    found = []
    if not (Path(places.configs) / "longva_tpo.py").exists():
        found.append(f"--configs={places.configs} is not the folder of the config files of a clone")
    for field in dataclasses.fields(places):
        value = getattr(places, field.name)
        if field.name in wanted and not value:
            found.append(f"--{field.name} is not given")
        elif field.name in wanted and not Path(value).exists():
            found.append(f"--{field.name}={value} is not there")
    config = None if found else load_config(places.checkpoint)
    if isinstance(config, LlavaQwenConfig) and config.tower.kind != TOWERS[ITEMS[item].family]:
        found.append(f"--checkpoint={places.checkpoint} has no tower of {ITEMS[item].family}")
    return found


def page(item: str, places: Places, topology: str, chip_hours: Mapping[str, float]) -> str:
    """Return the commands of an item and their cost as Markdown."""
    found = commands(item, places, topology, chip_hours)
    lines = [f"## {item} at 7B", "", "```bash", *map(str, found), "```", ""]
    if any(command.name == "train" for command in found):
        name = ITEMS[item].family
        plan = str(Command("plan", plan_arguments(name, topology, places.configs), ""))
        if each := chip_hours.get(name):
            total = sum(command.chip_hours for command in found)
            cost = f"at least {total:.1f} chip-hours, {each:.1f} for 10,000 pairs, by `{plan}`"
        else:
            cost = f"ask `{plan}`"
        lines += [
            f"Training on {topology}: {cost}; every row counts as TPO. Curation and evaluation are "
            "not part of the plan.",
            "",
        ]
    return "\n".join(lines)


def run(item: str, places: Places, topology: str) -> None:
    """Run the commands whose results are absent.

    Raises:
        InputError: one fails.
    """
    for command in commands(item, places, topology):
        if Path(command.makes).exists():
            continue
        print(command, file=sys.stderr, flush=True)
        line = [sys.executable, "-m", f"tpo_jax.{command.name}", *command.arguments]
        if code := subprocess.run(line, check=False).returncode:
            raise InputError(f"exit code {code}: {command}")
