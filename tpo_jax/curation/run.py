"""A curation run from the folder of videos to shards and data card."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tpo_jax.curation import backends, card, engine, review, stages
from tpo_jax.curation.balance import balance, pair
from tpo_jax.curation.charts import charts
from tpo_jax.curation.ledger import Ledger, Spent
from tpo_jax.curation.rules import Rules
from tpo_jax.data import preparation
from tpo_jax.errors import InputError
from tpo_jax.io.files import write_json, write_lines
from tpo_jax.io.paths import check_config
from tpo_jax.parallel import distributed

STRUCK = "struck.txt"
REVIEWED = 200  # pairs on the page


def curate(
    config: ConfigDict, workdir: Path, part: engine.Part, max_cost: float, retry: bool
) -> dict[str, Any]:
    """Runs or continues a part; returns what all parts together have made so far.

    Args:
        config: `configs/curation.py`.
        workdir: of everything it makes; made if absent.
        part: which videos.
        max_cost: stop asking when all parts and runs together have cost so much; 0: no limit.
        retry: do again what was set aside.

    Raises:
        InputError: something in the config, the folder or a back end is wrong.
    """
    check_config(config)
    stages.check(config)
    videos = stages.listing(Path(config.videos.folder), config.videos.limit)
    steps = stages.make_stages(config, videos)
    makers = {role: backends.identity(config, role) for role in stages.ROLES}
    owners = backends.owners(config, steps, makers)
    ledgers: list[Ledger] = []  # of the process that asks endpoints

    def begin() -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--workdir={workdir}: cannot be made: {error.strerror}") from error
        ledgers.append(Ledger(part.file(workdir, "costs"), config.openai, max_cost))

    distributed.lead(begin)
    try:
        engine.run(
            steps,
            owners,
            backends.Maker(config, ledgers[0] if ledgers else None, rules=Rules).speaker,
            videos,
            workdir,
            part,
            retry=retry,
            joint=lambda role: config[role].backend == "local",
            spent=lambda: ledgers[0].own if ledgers else Spent(),
        )
    finally:
        if ledgers:
            ledgers[0].close()
            result = engine.collect(steps, videos, workdir)
            write_lines(workdir / "set_aside.jsonl", result.set_aside)
    return distributed.lead(lambda: _finish(config, videos, result, workdir, makers))


def _finish(
    config: ConfigDict,
    videos: list[engine.Unit],
    result: engine.Result,
    workdir: Path,
    makers: dict[str, str],
) -> dict[str, Any]:
    """From judged units to pairs, card, page and shards; returns the report."""
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
    write_lines(workdir / "pairs.jsonl", (pair(unit, model) for unit in units))
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
    pictures = charts(report, units)
    for name, picture in pictures.items():
        (workdir / f"{name}.svg").write_text(picture, encoding="utf-8")
    text = card.card(numbers, result.yields, makers, config.videos.licence, list(pictures))
    (workdir / "README.md").write_text(text, encoding="utf-8")
    review.write_page(
        workdir / "review.html", units, Path(config.videos.folder), pictures.values(), REVIEWED
    )
    preparation.prepare(
        workdir / "pairs.jsonl",
        Path(config.videos.folder),
        workdir / "shards",
        preparation.Settings(num_frames=config.shards.num_frames, frames=config.shards.frames),
        workers=config.shards.workers,
        struck=workdir / STRUCK if (workdir / STRUCK).exists() else None,
    )
    return report
