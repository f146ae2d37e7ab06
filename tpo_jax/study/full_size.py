"""The paper's tables and figures at 7B: the commands of every step, as strings a shell takes and as
lists this process runs, and what the plan says they cost.
"""

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tpo_jax.checkpoints.models import load_config
from tpo_jax.errors import InputError
from tpo_jax.planning.plan import chips_of
from tpo_jax.study import published
from tpo_jax.study.rows import ROWS

TOPOLOGY = "v5e:4x4"
BATCH_SIZE = 64  # of the configs
# There, per 10,000 pairs, by `plan`: jax 0.10.2, libtpu 0.0.51. LongVA's rows are shorter.
CHIP_HOURS = {"longva": 3.9, "llava_video": 5.1}

BENCHMARKS = {"LVB": "longvideobench_val_v", "MLVU": "mlvu_dev", "VMME": "videomme"}
SUBTITLED = {"VMME with subtitles": "videomme_w_subtitle"}
FOLDERS = {
    "longvideobench_val_v": "longvideobench",
    "mlvu_dev": "mlvu",
    "videomme": "videomme",
    "videomme_w_subtitle": "videomme",
}


@dataclasses.dataclass(frozen=True)
class Places:
    """What a user gives.

    Attributes:
        checkpoint: the base model, of either layout.
        shards: preference pairs, as `prepare` or `curate` leave them.
        written: answers of another model, for SFT_LLM.
        judged: judge-scored pairs of sampled answers, for Hound-DPO.
        benchmarks: folder that holds the benchmarks' folders.
        videos: folder of videos to curate pairs from, where `shards` is not given.
        haystack: a movie, for Figure 3.
        needles: its needles.
        workdir: of everything that is made.
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


ITEMS = {
    "table1": tuple(published.TABLE1),
    "table2": tuple(published.TABLE2),
    "table3": tuple(published.TABLE3),
    "table4": tuple(published.TABLE4),
    "table5": tuple(published.TABLE5),
    "figure2": ("base", "tpo"),
    "figure3": ("base", "tpo"),
}
TOWERS = {"longva": "clip", "llava_video": "siglip"}
FIGURE2_FRAMES = (16, 32, 64, 96, 128)


@dataclasses.dataclass(frozen=True)
class Command:
    """A door with its arguments, and what it makes."""

    door: str
    arguments: tuple[str, ...]
    makes: str
    chip_hours: float = 0.0

    def __str__(self) -> str:
        return shlex.join(("python", "-m", f"tpo_jax.{self.door}", *self.arguments))


def family(item: str) -> str:
    """Whose model an item is about."""
    return "llava_video" if item == "table2" else "longva"


def fitting(topology: str) -> tuple[str, ...]:
    """Flags of `train` with which a chip of 16 GB is enough: one pair at a time on each.

    Raises:
        InputError: no such slice, or one over which a step's pairs do not divide.
    """
    if BATCH_SIZE % (chips := chips_of(topology)):
        raise InputError(
            f"--topology={topology}: {chips} chips do not share {BATCH_SIZE} pairs, one each at a "
            "time; take a slice of 1, 2, 4, … or 64"
        )
    return (
        f"--config.compute.micro_batches={BATCH_SIZE // chips}",
        "--config.compute.remat=attention:save",
    )


def plan_arguments(name: str, topology: str) -> tuple[str, ...]:
    """Of `plan`, for TPO of a family."""
    return (
        f"--config=configs/{name}_tpo.py",
        f"--config.model.preset={name}_7b",
        f"--topology={topology}",
        *fitting(topology),
    )


def place(item: str, row: str, places: Places) -> str:
    """The directory of a row: its training and, by benchmark, its evaluations."""
    return f"{places.workdir}/{family(item)}_{row}"


def curated(item: str, places: Places) -> str:
    """The directory of the pairs that are curated for an item."""
    return f"{places.workdir}/curated_{family(item)}"


def evaluation(folder: str | Path, benchmark: str, num_frames: int = 0) -> str:
    """The directory of one evaluation below that of its row."""
    return f"{folder}/{benchmark}" + (f"_{num_frames}" if num_frames else "")


def commands(
    item: str,
    places: Places,
    topology: str = TOPOLOGY,
    chip_hours: Mapping[str, float] = CHIP_HOURS,
) -> list[Command]:
    """The commands of an item, in order. Places that are not given stand there in capitals.

    Args:
        item: one of `ITEMS`, or `figure5` or `figure6`, which need curation alone.
        places: of what is there.
        topology: of the slice that trains.
        chip_hours: of training on 10,000 pairs there, by family; 0 where it is not known.
    """
    given = {
        field.name: getattr(places, field.name) or field.name.upper()
        for field in dataclasses.fields(places)
    }
    name = family(item)
    made = curated(item, places)
    curate = Command(
        "curate",
        (
            "--config=configs/curate_local.py",
            f"--workdir={made}",
            f"--config.videos.folder={given['videos']}",
            f"--config.local.checkpoint={given['checkpoint']}",
            "--config.balance.pairs=10000",
        ),
        f"{made}/shards",
    )
    if item in ("figure5", "figure6"):
        return [curate]
    found = [] if places.shards else [curate]
    given["shards"] = places.shards or curate.makes
    for row in ITEMS[item]:
        model = f"{place(item, row, places)}/model"
        if not (training := ROWS[row].full_size):
            model = given["checkpoint"]
        else:
            arguments = (
                f"--config=configs/{name}_tpo.py:{training.variant or row}",
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
    names = list(BENCHMARKS.values())
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
    """What an item needs and the places do not hold: flag and reason.

    Raises:
        InputError: the base model cannot be read.
    """
    wanted = {"checkpoint"}
    if item in ("figure5", "figure6"):
        wanted.add("videos")
    elif item == "figure3":
        wanted |= {"haystack", "needles"}
    else:
        wanted.add("benchmarks")
    trainings = (ROWS[row].full_size for row in ITEMS.get(item, ()))
    wanted |= {training.shards for training in trainings if training}
    if "shards" in wanted and places.videos:
        wanted = wanted - {"shards"} | {"videos"}
    found = []
    for field in dataclasses.fields(places):
        value = getattr(places, field.name)
        if field.name in wanted and not value:
            found.append(f"--{field.name} is not given")
        elif field.name in wanted and not Path(value).exists():
            found.append(f"--{field.name}={value} is not there")
    if not found and load_config(places.checkpoint).tower.kind != TOWERS[family(item)]:
        found.append(f"--checkpoint={places.checkpoint} has no tower of {family(item)}")
    return found


def page(item: str, places: Places, topology: str, chip_hours: Mapping[str, float]) -> str:
    """The commands of an item and their cost as Markdown."""
    found = commands(item, places, topology, chip_hours)
    lines = [f"## {item} at 7B", "", "```bash", *map(str, found), "```", ""]
    if any(command.door == "train" for command in found):
        name = family(item)
        plan = str(Command("plan", plan_arguments(name, topology), ""))
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
    """Carries out the commands whose results are not there; raises InputError if one fails."""
    for command in commands(item, places, topology):
        if Path(command.makes).exists():
            continue
        print(command, file=sys.stderr, flush=True)
        line = [sys.executable, "-m", f"tpo_jax.{command.door}", *command.arguments]
        if code := subprocess.run(line, check=False).returncode:
            raise InputError(f"exit code {code}: {command}")
