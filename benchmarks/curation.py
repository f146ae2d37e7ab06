"""Curation on the embedded world, whose truth is known: how good the pairs are, judged and not.

    python benchmarks/curation.py [--videos=100] [--checkpoint=DIR] [--output=FILE.md]

Captions, questions and verdicts come from rules. Answers come from rules that are right exactly
when their frames show the evidence, but for a tenth of slips; with `--checkpoint`, a base model of
the quickstart (`quickstart/base/model`), from that model as well. Prints Markdown tables.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs import curate_world
from tpo_jax.curation import engine, stages
from tpo_jax.evaluation.scoring import exact
from tpo_jax.recipes.curation import curate
from tpo_jax.worlds.world import make_videos

VIDEOS = flags.DEFINE_integer("videos", 100, "Videos of 96 seconds.", lower_bound=1)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model directory of the answerer.")
OUTPUT = flags.DEFINE_string("output", None, "File for the tables, besides standard output.")
SEED = 31


def config_of(folder: Path, checkpoint: str | None):
    """The run: views of 24 frames, at a second a frame in segments, at four in whole videos."""
    config = curate_world.get_config()
    config.videos.folder, config.rules.world_seed = str(folder), SEED
    config.segments.min_seconds, config.segments.max_seconds = 24.0, 30.0
    config.answerer.num_frames = 24
    config.shards.num_frames = 4
    if checkpoint:
        config.answerer.backend, config.local.checkpoint = "local", checkpoint
        config.answerer.max_new_tokens = 12
        config.local.dtype, config.local.batch_rows = "float32", 16
    return config


def share(values: list) -> str:
    """A mean as a percentage."""
    return f"{100 * sum(values) / len(values):.0f} %" if values else "–"


def by_length(units: list[dict]) -> float:
    """Best accuracy of telling chosen from rejected by which is longer, or which is shorter."""
    longer = [
        0.5 if len(u["chosen"]) == len(u["rejected"]) else len(u["chosen"]) > len(u["rejected"])
        for u in units
    ]
    mean = sum(longer) / max(1, len(longer))
    return max(mean, 1 - mean)


def table(name: str, answered: list[dict], kept: set[str]) -> list[str]:
    """Per value of a field: how often either answer is true, before and after the judge."""
    groups = defaultdict(list)
    for unit in answered:
        groups[unit[name]].append(unit)
    lines = [
        f"| {name} | pairs | chosen true | rejected true | chosen true, rejected not | kept | "
        "of those chosen true, rejected not |",
        "|---|---|---|---|---|---|---|",
    ]
    for value, units in [*sorted(groups.items()), ("all", answered)]:
        right = [
            (exact(u["chosen"], u["reference"]), exact(u["rejected"], u["reference"]))
            for u in units
        ]
        good = [chosen and not rejected for chosen, rejected in right]
        after = [g for g, u in zip(good, units, strict=True) if u["id"] in kept]
        cells = [len(units), share([c for c, _ in right]), share([r for _, r in right])]
        cells += [share(good), len(after), share(after)]
        lines.append(f"| {value} | " + " | ".join(map(str, cells)) + " |")
    return lines


def run(folder: Path, workdir: Path, checkpoint: str | None) -> list[str]:
    """The tables of one run."""
    config = config_of(folder, checkpoint)
    start = time.perf_counter()
    report = curate(config, workdir, engine.Part(), 0.0, False)
    seconds = time.perf_counter() - start
    videos = stages.listing(folder, 0)
    steps = stages.make_stages(config, videos)
    result = engine.collect(steps, videos, workdir)
    answered = engine.collect(steps[:-1], videos, workdir).units
    kept = {unit["id"] for unit in result.units}
    pairs = [json.loads(line) for line in (workdir / "pairs.jsonl").read_text().splitlines()]
    yields = report["yields"]
    return [
        f"{seconds:.0f} seconds for all stages and the shards.",
        "",
        "| stage | units | items | dropped | set aside |",
        "|---|---|---|---|---|",
        *(f"| {s} | " + " | ".join(map(str, c.values())) + " |" for s, c in yields.items()),
        "",
        *table("manipulation", answered, kept),
        "",
        *table("type", answered, kept),
        "",
        f"Telling the two answers apart by length alone: {100 * by_length(answered):.0f} % before "
        f"the judge, {100 * by_length(pairs):.0f} % of the final pairs; 50 % is chance.",
    ]


def main(_) -> None:
    """Renders, runs and prints."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_videos(root / "videos", SEED, [96] * VIDEOS.value)
        lines = [
            "# Curation on the embedded world",
            "",
            f"{VIDEOS.value} videos of 96 seconds. Captions, questions and verdicts by rules that "
            "know the truth.",
            "",
            "## Answers by rules",
            "",
            *run(root / "videos", root / "rules", None),
        ]
        if CHECKPOINT.value:
            lines += ["", "## Answers by the quickstart's base model", ""]
            lines += run(root / "videos", root / "model", CHECKPOINT.value)
    text = "\n".join(lines) + "\n"
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
