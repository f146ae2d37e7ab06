"""A curation run, from the folder of videos to shards and data card."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tpo_jax.curation import card, journals, review, roles
from tpo_jax.curation.balance import balance, pair
from tpo_jax.curation.charts import charts
from tpo_jax.curation.config import ROLES, Config, check, read
from tpo_jax.curation.engine import StageRunner
from tpo_jax.curation.ledger import Ledger
from tpo_jax.curation.stages import make_stages
from tpo_jax.curation.units import Unit
from tpo_jax.curation.videos import list_videos
from tpo_jax.data import exports, preparation
from tpo_jax.errors import InputError
from tpo_jax.io.files import write_json, write_lines, write_text
from tpo_jax.io.paths import check_config
from tpo_jax.parallel import distributed

EXCLUDED = "struck.txt"


def curate(
    config: ConfigDict,
    workdir: Path,
    part: journals.WorkPart = journals.WorkPart(),  # noqa: B008, a constant
    max_cost: float = 0.0,
    retry: bool = False,
    spent_before: float = 0.0,
) -> dict[str, Any]:
    """Run or resume a part; return what all parts together have made so far.

    Args:
        config: Made by a config file, see `config.base`.
        workdir: Of everything the run makes; created if absent.
        max_cost: Stop asking when all parts and runs together have cost this much; 0: no limit.
        spent_before: Cost of earlier work elsewhere that counts against this limit, too.

    Raises:
        InputError: The config, the folder or a client is wrong.
    """
    check_config(config)
    settings = read(config)
    check(settings)
    if settings.shards.export:
        exports.check_folder(settings.videos.folder)
    videos = list_videos(Path(settings.videos.folder), settings.videos.limit)
    stages = make_stages(settings, videos)
    models = {role: roles.identity(settings, role) for role in ROLES}
    owners = roles.stage_owners(settings, stages)
    with ExitStack() as stack:
        ledger: list[Ledger] = []  # only in the process that asks endpoints

        def open_ledger() -> None:
            _make_workdir(workdir)
            path = part.file(workdir, "costs")
            opened = Ledger(path, settings.openai, max_cost, spent_before)
            ledger.append(stack.enter_context(closing(opened)))

        distributed.lead(open_ledger)
        clients = roles.Clients(settings, ledger[0] if ledger else None)
        try:
            StageRunner(workdir, part, owners, clients, retry).run(stages, videos)
        finally:
            if ledger:
                result = journals.collect(stages, videos, workdir)
                write_lines(workdir / "set_aside.jsonl", result.failed)
    report: dict[str, Any] = distributed.lead(
        lambda: _finish(settings, videos, result, workdir, models)
    )
    return report


def _make_workdir(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be created: {error.strerror}") from error


def _finish(
    config: Config,
    videos: list[Unit],
    result: journals.Result,
    workdir: Path,
    models: dict[str, str],
) -> dict[str, Any]:
    """Write pairs, card, page and shards; return the report."""
    if result.waiting:
        return {"waiting": result.waiting, "yields": result.yields}
    if not result.units:
        first = result.failed[0] if result.failed else None
        reason = f"; the first failure: {first['id']}: {first['reason']}" if first else ""
        left = ", ".join(f"{stage} {counts['items']}" for stage, counts in result.yields.items())
        raise InputError(
            f"{workdir}: no pair is left, see set_aside.jsonl and judged.jsonl; left after each "
            f"stage: {left}{reason}"
        )
    seed = config.segments.seed
    units, removed = balance(result.units, config.balance, config.questions.types, seed)
    if not units:
        raise InputError(f"{workdir}: section balance of the config leaves no pair: {removed}")
    write_lines(workdir / "pairs.jsonl", (pair(unit, models["answerer"]) for unit in units))
    probed = journals.next_units(videos, journals.read_outcomes(workdir, "videos"))
    result.yields["balance"] = {
        "units": len(result.units),
        "items": len(units),
        "dropped": len(result.units) - len(units),
        "set aside": 0,
    }
    numbers = card.statistics(probed, units)
    report = {**numbers, "yields": result.yields, "balance": removed, "makers": models}
    write_json(workdir / "report.json", report)
    _write_pages(config, units, report, workdir)
    _write_shards(config, workdir)
    return report


def _write_pages(config: Config, units: list[Unit], report: dict[str, Any], workdir: Path) -> None:
    pictures = charts(report, units)
    for name, picture in pictures.items():
        write_text(workdir / f"{name}.svg", picture)
    licence = config.videos.licence
    text = card.card(report, report["yields"], report["makers"], licence, list(pictures))
    write_text(workdir / "README.md", text)
    folder = Path(config.videos.folder)
    review.write_page(workdir / "review.html", units, folder, list(pictures.values()))


def _write_shards(config: Config, workdir: Path) -> None:
    excluded = workdir / EXCLUDED
    preparation.prepare(
        workdir / "pairs.jsonl",
        Path(config.videos.folder),
        workdir / "shards",
        preparation.Settings(num_frames=config.shards.num_frames, frames=config.shards.frames),
        preparation.Work(workers=config.shards.workers),
        excluded=excluded if excluded.exists() else None,
    )
    exports.export(workdir / "shards", config.videos.folder, config.shards.export)
