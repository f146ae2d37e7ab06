"""Train in rounds on pairs that the model makes itself.

    python -m tpo_jax.rounds --curate=FILE --config=FILE --workdir=DIR --rounds=N
      [--reference=first|last] [--curate.a.b=…] [--config.a.b=…]

`--curate` is a config of `curate` and `--config` one of `train`. Round r curates with the model of
round r - 1, the first round with `--config.model.checkpoint`, and trains that model on its pairs.
Files are in `DIR/round_r/curation/` and `DIR/round_r/training/`, as those commands write them;
`docs/curation.md` explains the rest. Run the command again to resume an interrupted run or, with
more rounds, to continue a finished one. On several hosts the same command runs on each, with
`--distributed`.
"""

import copy
import gc
import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from tpo_jax.checkpoints import hub
from tpo_jax.curation import config as curation_config
from tpo_jax.curation.ledger import Spent, spent_in
from tpo_jax.curation.roles import stage_owners
from tpo_jax.curation.run import curate
from tpo_jax.curation.stages import make_stages
from tpo_jax.errors import InputError, run_command
from tpo_jax.io.files import read_json_object
from tpo_jax.io.paths import check_config, define_path
from tpo_jax.parallel import distributed
from tpo_jax.parallel.programs import CACHE_HELP, keep_programs
from tpo_jax.train import make_directory, train
from tpo_jax.training import experiment, run_page
from tpo_jax.training.identity import changed_fields
from tpo_jax.training.metrics import read_records
from tpo_jax.training.stage_journal import StageJournal, open_journal

REFERENCES = ("last", "first")
# Fields of a training config that every round sets.
SET = ("model.checkpoint", "model.reference", "data.shards")


def check(curation: ConfigDict, training: ConfigDict, rounds: int, reference: str) -> None:
    """Raise InputError, naming the flag, for what no round could work with."""
    check_config(curation, "--curate.")
    check_config(training)
    if rounds < 1:
        raise InputError(f"--rounds={rounds} must be 1 or more")
    if reference not in REFERENCES:
        raise InputError(f"--reference={reference} must be one of {', '.join(REFERENCES)}")
    if not training.model.checkpoint:
        raise InputError(
            "--config.model.checkpoint is empty: name the model that round 1 begins with"
        )
    for name in ("preset", "tower", "adapters"):
        if value := training.model[name]:
            raise InputError(
                f"--config.model.{name}={value}: rounds curate with a whole model directory; make "
                "one with `convert`, or by saving a preset, and name it in model.checkpoint"
            )
    for section, name in (("model", "reference"), ("data", "shards"), ("data", "reference")):
        if value := training[section][name]:
            raise InputError(f"--config.{section}.{name}={value}: leave it empty, rounds set it")
    role, local = curation.answerer, curation.local.checkpoint
    if role.backend != "local" or role.model:
        raise InputError(
            f"--curate.answerer.backend={role.backend} with model={role.model!r}: the model just "
            "trained answers, so the backend must be local and the model empty"
        )
    if local not in ("", training.model.checkpoint):
        raise InputError(f"--curate.local.checkpoint={local}: leave it empty, rounds set it")


def model_of(workdir: Path, number: int) -> Path:
    """Return the directory of the model that a round trains."""
    return workdir / f"round_{number}" / "training" / "model"


def configs(
    curation: ConfigDict, training: ConfigDict, workdir: Path, number: int, reference: str
) -> tuple[ConfigDict, ConfigDict]:
    """Return the configs of `curate` and `train` for a round, made of the given ones.

    Args:
        number: Of the round, from 1.
    """
    curation, training = copy.deepcopy(curation), copy.deepcopy(training)
    first = training.model.checkpoint
    if number > 1:
        training.model.checkpoint = str(model_of(workdir, number - 1))
        training.model.reference = first if reference == "first" else ""
    training.data.shards = str(workdir / f"round_{number}" / "curation" / "shards")
    curation.local.checkpoint = str(hub.folder(training.model.checkpoint))
    curation.segments.seed += number - 1  # other segments, so other questions
    return curation, training


def curation_stage(
    config: ConfigDict, folder: Path, max_cost: float, spent_before: float
) -> dict[str, Any]:
    """Curate and free the model's memory; return what was asked, kept and spent."""
    _say(f"{folder}: curating with {config.local.checkpoint}")
    report = curate(config, folder, max_cost=max_cost, spent_before=spent_before)
    gc.collect()
    spent = Spent(*distributed.lead(lambda: spent_in(folder)))
    priced = config.openai.price_in or config.openai.price_out
    return {
        "questions": report["yields"]["questions"]["items"],
        "pairs": report["pairs"],
        "yields": report["yields"],
        "tokens": spent.tokens_in + spent.tokens_out,
        **({"cost": spent.cost} if priced else {}),
    }


def training_stage(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """Train and write the report of the run; return None if training was asked to stop."""
    _say(f"{folder}: training from {config.model.checkpoint}")
    model = train(config, folder)
    gc.collect()
    if model is None:
        return None
    if jax.process_index() == 0:
        run_page.write(folder)
    steps = distributed.lead(lambda: read_records(folder / "metrics.jsonl")[-1]["step"])
    return {"steps": steps}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def run_rounds(
    curation: ConfigDict,
    training: ConfigDict,
    workdir: Path,
    rounds: int,
    reference: str = "last",
    max_cost: float = 0.0,
) -> dict[str, Any] | None:
    """Run rounds of curation and training, or what is left of them.

    All processes must call this together.

    Args:
        curation: Config of `curate`, made by a config file.
        training: Config of `train`.
        workdir: Of all rounds; created if absent.
        rounds: Number of rounds at the end, with those that are done.
        reference: Whose log-probabilities training compares with: `last`, those of the model that
            the round begins with; `first`, those of the model that round 1 began with.
        max_cost: Stop asking paid endpoints when all rounds have cost this much; 0: no limit.

    Returns:
        `model`, the directory of the last model, and `rounds`, what each of them took and made;
        None if training was asked to stop before its end.

    Raises:
        InputError: A field is wrong, the directory holds rounds with other settings, or a round
            fails; the message says which one, and where the last model is.
    """
    check(curation, training, rounds, reference)
    given = [configs(curation, training, workdir, n, reference) for n in range(1, rounds + 1)]
    settings = curation_config.read(given[0][0])
    curation_config.check(settings)
    experiment.read(given[-1][1])
    owner = stage_owners(settings, make_stages(settings, []))["judged"]
    owner |= {"model.checkpoint": training.model.checkpoint, "reference": reference}
    reports: list[dict[str, Any]] = []
    distributed.lead(lambda: make_directory(workdir))
    with open_journal(workdir / "rounds.jsonl", owner) as journal:
        for number, (curated, trained) in enumerate(given, 1):
            spent = sum(report["curation"].get("cost", 0.0) for report in reports)
            try:
                report = run_round(journal, number, (curated, trained), workdir, (max_cost, spent))
            except InputError as error:
                kept = f"; {model_of(workdir, number - 1)} is the last model" if reports else ""
                raise InputError(f"round {number}: {error}{kept}") from error
            if report is None:
                return None
            reports.append(report)
            _say(told(report, rounds))
    return {"model": str(model_of(workdir, rounds)), "rounds": reports}


def run_round(
    journal: StageJournal,
    number: int,
    given: tuple[ConfigDict, ConfigDict],
    workdir: Path,
    costs: tuple[float, float],
) -> dict[str, Any] | None:
    """Run what is left of a round; return what it took and made, None if it was asked to stop.

    Args:
        given: Configs of `curate` and `train` for the round.
        costs: The limit of all rounds, 0 for none, and what earlier ones have spent.
    """
    curation, training = given
    folders = [workdir / f"round_{number}" / name for name in ("curation", "training")]
    curated = journal.run(
        number, "curation", folders[0], lambda: curation_stage(curation, folders[0], *costs)
    )
    trained = journal.run(
        number, "training", folders[1], lambda: training_stage(training, folders[1])
    )
    if trained is None:
        return None
    saved, values = folders[1] / "config.json", json.loads(training.to_json_best_effort())
    if changes := changed_fields(read_json_object(saved), values, SET):
        raise InputError(
            f"{saved}: the round was trained otherwise ({changes}); use another --workdir"
        )
    model = str(model_of(workdir, number))
    return {"round": number, "curation": curated, "training": trained, "model": model}


def told(report: dict[str, Any], rounds: int) -> str:
    """Return a round's report as a line."""
    curation, training = report["curation"], report["training"]
    devices = curation["device seconds"] + training["device seconds"]
    cost = f", cost {curation['cost']:.4f}" if "cost" in curation else ""
    return (
        f"round {report['round']} of {rounds}: {curation['pairs']} pairs of "
        f"{curation['questions']} questions in {curation['seconds']} s, {training['steps']} steps "
        f"in {training['seconds']} s; {devices:.0f} device seconds{cost}"
    )


def main() -> None:
    """Run the command and print what every round took and made."""
    distributed.start(_DISTRIBUTED.value)
    keep_programs(_COMPILATION_CACHE.value)
    found = run_rounds(
        _CURATE.value,
        _CONFIG.value,
        Path(_WORKDIR.value),
        _ROUNDS.value,
        _REFERENCE.value,
        _MAX_COST.value,
    )
    if found and jax.process_index() == 0:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    _CURATE = config_flags.DEFINE_config_file("curate", None, "the curation", lock_config=True)
    _CONFIG = config_flags.DEFINE_config_file("config", None, "the training", lock_config=True)
    _WORKDIR = define_path("workdir", None, "directory of all rounds", required=True)
    _ROUNDS = flags.DEFINE_integer(
        "rounds", None, "rounds at the end, done ones included", required=True
    )
    _REFERENCE = flags.DEFINE_enum(
        "reference",
        "last",
        REFERENCES,
        "whose log-probabilities training compares with: of the model that the round begins with, "
        "or that round 1 began with",
    )
    _MAX_COST = flags.DEFINE_float(
        "max_cost",
        0.0,
        "stop asking when all rounds have cost this much; 0: no limit",
        lower_bound=0,
    )
    _DISTRIBUTED = flags.DEFINE_string("distributed", "", distributed.FLAG_HELP)
    _COMPILATION_CACHE = flags.DEFINE_bool("compilation_cache", True, CACHE_HELP)
    flags.mark_flags_as_required(["curate", "config"])
    run_command(main)
