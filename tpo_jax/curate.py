"""Temporal preference pairs from a folder of videos.

    python -m tpo_jax.curate --config=FILE --workdir=DIR [--config.a.b=…]

Stages: videos, segments, captions, questions, answers, judged, then `pairs.jsonl`, `shards/` and
the data card `README.md`. `docs/curation.md` explains the fields and the files. An interrupted run
is continued by running it again. `set_aside.jsonl` lists what could not be used, with reasons.
"""

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from tpo_jax.curation import backends, card, engine, stages
from tpo_jax.curation.balance import balance, pair
from tpo_jax.curation.ledger import Ledger
from tpo_jax.data import preparation
from tpo_jax.data.shards import write_json
from tpo_jax.errors import InputError, run_door
from tpo_jax.recipes.rules import Rules

_CONFIG = config_flags.DEFINE_config_file("config", None, "Run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of everything it makes.", required=True)
_PART = flags.DEFINE_string(
    "part", "", "i/n: do the i-th of n shares of the videos; all use one --workdir."
)
_MAX_COST = flags.DEFINE_float(
    "max_cost", 0.0, "Stop asking when this part has cost so much; 0: no limit.", lower_bound=0
)
_RETRY = flags.DEFINE_bool("retry", False, "Do again what was set aside.")
flags.mark_flag_as_required("config")


def curate(config: ConfigDict, workdir: Path, part: engine.Part, max_cost: float, retry: bool):
    """Runs or continues a part; returns what all parts together have made so far.

    Raises:
        InputError: something in the config, the folder or a back end is wrong.
    """
    stages.check(config)
    videos = stages.listing(Path(config.videos.folder), config.videos.limit)
    steps = stages.make_stages(config, videos)
    makers = {role: backends.identity(config, role) for role in stages.ROLES}
    owners = backends.owners(config, steps, makers)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be made: {error.strerror}") from error
    ledger = Ledger(part.file(workdir, "costs"), config.openai, max_cost)
    maker = backends.Maker(config, ledger, rules=Rules)
    try:
        engine.run(
            *(steps, owners, maker.speaker, videos, workdir, part),
            retry=retry,
            spent=lambda: ledger.spent,
        )
    finally:
        ledger.close()
        result = engine.collect(steps, videos, workdir)
        engine.write_lines(workdir / "set_aside.jsonl", result.set_aside)
    if result.waiting:
        return {"waiting": result.waiting, "yields": result.yields}
    if not result.units:
        last = result.set_aside[0] if result.set_aside else None
        reason = f"; the first set aside: {last['id']}: {last['reason']}" if last else ""
        raise InputError(
            f"{workdir}: no pair is left, see set_aside.jsonl and judged.jsonl{reason}"
        )
    seed = config.segments.seed
    units, fell = balance(result.units, config.balance, config.questions.types, seed)
    if not units:
        raise InputError(f"{workdir}: no pair is left by section balance of the config: {fell}")
    model = makers["answerer"]
    engine.write_lines(workdir / "pairs.jsonl", (pair(unit, model) for unit in units))
    known = engine.follow(videos, engine.outcomes(workdir, "videos"))
    numbers = card.statistics(known, units)
    result.yields["balance"] = {
        "units": len(result.units),
        "items": len(units),
        "dropped": len(result.units) - len(units),
        "set aside": 0,
    }
    report = {**numbers, "yields": result.yields, "balance": fell, "makers": makers}
    write_json(workdir / "report.json", report)
    (workdir / "README.md").write_text(card.card(numbers, result.yields, makers), encoding="utf-8")
    preparation.prepare(
        workdir / "pairs.jsonl",
        config.videos.folder,
        workdir / "shards",
        preparation.Settings(num_frames=config.shards.num_frames, frames=config.shards.frames),
        workers=config.shards.workers,
    )
    return report


def main() -> None:
    """Runs it and prints what came of it."""
    part = engine.parse_part(_PART.value)
    workdir = Path(_WORKDIR.value)
    report = curate(_CONFIG.value, workdir, part, _MAX_COST.value, _RETRY.value)
    print(json.dumps(report, indent=2))
    if report.get("waiting"):
        print(
            f"{report['waiting']} units wait for other parts; the last part writes the pairs",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_door(main)
