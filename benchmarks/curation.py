"""Measure the quality of curated pairs, before and after judges, on the synthetic world.

    python benchmarks/curation.py [--videos=60] [--checkpoint=DIR] [--output=FILE.md]

Captions and questions are scripted. Answers are scripted, right exactly when their frames show the
evidence except for an error rate of 10 %; with `--checkpoint`, a base model of the quickstart
(`quickstart/base/model`), also those of that model. Judges are scripted and know the truth, the
same with a share of inverted verdicts and, with `--checkpoint`, the model, once asked for a verdict
and once for its own answer. Prints Markdown tables.
"""

import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.config_files import load
from tpo_jax.curation import journals, stages
from tpo_jax.curation.config import read
from tpo_jax.curation.run import curate
from tpo_jax.curation.seeds import seed_of
from tpo_jax.curation.units import Unit
from tpo_jax.curation.videos import list_videos
from tpo_jax.errors import InputError
from tpo_jax.study.statistics import exact
from tpo_jax.worlds.world import make_videos

VIDEOS = flags.DEFINE_integer("videos", 60, "Videos of 96 seconds.", lower_bound=2)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model directory of answerer and judge.")
OUTPUT = flags.DEFINE_string("output", None, "File for the tables, besides standard output.")
SEED = 31
BEFORE = ("videos", "segments", "captions", "questions", "answers")  # stages of all judges


def config_of(folder: Path, checkpoint: str | None) -> ConfigDict:
    """Return the config: views of 32 frames, as many as the quickstart's long videos have."""
    config = load("curate_world").get_config()
    config.videos.folder, config.rules.world_seed = str(folder), SEED
    config.segments.min_seconds, config.segments.max_seconds = 24.0, 30.0
    config.answerer.num_frames = 32
    config.shards.num_frames = 4
    if checkpoint:
        config.answerer.backend, config.local.checkpoint = "local", checkpoint
        config.answerer.max_new_tokens = 12
        config.local.dtype, config.local.batch_rows = "float32", 16
    return config


def judges_of(config: ConfigDict, checkpoint: str | None) -> dict[str, ConfigDict]:
    """Return the config with every judge, by name; rules that know the truth come first."""
    found = {}

    def judge(name: str, **changes) -> None:
        found[name] = config.copy_and_resolve_references()
        found[name].update_from_flattened_dict(changes)

    judge("rules")
    for share in (0.1, 0.3):
        judge(f"rules, {share:.0%} inverted", **{"rules.judge_slips": share})
    if checkpoint:
        model = {"judge.backend": "local", "judge.max_new_tokens": 12}
        own = model | {"judge.asks": "question", "judge.num_frames": 24}
        config.local.checkpoint = checkpoint
        config.local.dtype, config.local.batch_rows = "float32", 16
        judge("model, its own answer", **own)
        judge("model, the three checks", **model | {"judge.num_frames": 0})
    return found


def share(values: Sequence[float]) -> str:
    """Return a mean as a percentage."""
    return f"{100 * sum(values) / len(values):.0f} %" if values else "–"


def true(unit: Unit, side: str) -> bool:
    """Return whether an answer is the reference answer, up to case and full stop."""
    return exact(getattr(unit, side), unit.reference)


def good(unit: Unit) -> bool:
    """Return whether the chosen answer is true and the rejected one is not."""
    return true(unit, "chosen") and not true(unit, "rejected")


def by_length(units: Sequence[Unit]) -> float:
    """Return how often lengths alone tell chosen from rejected, on videos not learned from.

    What is learned on the other half of the videos: which of two lengths the chosen answer tends to
    have, and for lengths not met whether the longer one is chosen.
    """

    def lengths(unit: Unit) -> tuple[int, int]:
        return len(unit.chosen), len(unit.rejected)

    halves: list[list[Unit]] = [[], []]
    for unit in units:
        halves[seed_of("half", unit.video) % 2].append(unit)
    right = 0.0
    for learned, asked in (halves, halves[::-1]):
        wins = Counter(lengths(unit) for unit in learned)
        longer = sum(n if a > b else -n for (a, b), n in wins.items() if a != b)
        for unit in asked:
            a, b = lengths(unit)
            lead = wins[a, b] - wins[b, a] or (longer if a > b else -longer)
            right += 0.5 if a == b or not lead else lead > 0
    return right / max(1, len(units))


def table(name: str, units: Sequence[Unit], kept: Mapping[str, set[str]]) -> list[str]:
    """Return per value of a field how often the answers are true, before and after every judge."""
    groups = defaultdict(list)
    for unit in units:
        groups[getattr(unit, name)].append(unit)
    head = [name, "pairs", "chosen true", "rejected true", "precision before"]
    head += [f"kept and precision after: {judge}" for judge in kept]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for value, group in [*sorted(groups.items()), ("all", units)]:
        cells = [value, str(len(group))]
        cells += [share([true(u, side) for u in group]) for side in ("chosen", "rejected")]
        cells.append(share([good(u) for u in group]))
        for ids in kept.values():
            after = [good(u) for u in group if u.id in ids]
            cells.append(f"{len(after)}, {share(after)}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def judges_table(units: Sequence[Unit], kept: Mapping[str, set[str]]) -> list[str]:
    """Return how well every judge finds the pairs whose chosen answer alone is true."""
    lines = ["| judge | keeps | precision | recall |", "|---|---|---|---|"]
    for name, ids in kept.items():
        precision = share([good(u) for u in units if u.id in ids])
        recall = share([u.id in ids for u in units if good(u)])
        lines.append(f"| {name} | {len(ids)} of {len(units)} | {precision} | {recall} |")
    return lines


def run(folder: Path, workdir: Path, answerer: str | None, judge: str | None) -> list[str]:
    """Return the tables of one answerer with all judges."""
    start = time.perf_counter()
    kept: dict[str, set[str]] = {}
    videos = list_videos(folder, 0)
    for name, config in judges_of(config_of(folder, answerer), judge).items():
        place = workdir / str(len(kept))
        place.mkdir(parents=True)
        if kept:
            for stage in BEFORE:
                (place / f"{stage}.jsonl").write_bytes((workdir / f"0/{stage}.jsonl").read_bytes())
        try:
            report = curate(config, place)
        except InputError as error:  # a judge that keeps nothing
            print(error, file=sys.stderr)
        steps = stages.make_stages(read(config), videos)
        kept[name] = {unit.id for unit in journals.collect(steps, videos, place).units}
        if len(kept) == 1:
            yields, balanced = report["yields"], place / "pairs.jsonl"
            units = journals.collect(steps[:-1], videos, place).units
    final = {json.loads(line)["id"] for line in balanced.read_text(encoding="utf-8").splitlines()}
    pairs = [unit for unit in units if unit.id in final]
    return [
        f"{time.perf_counter() - start:.0f} seconds for all stages, judges and shards.",
        "",
        "| stage | units | items | dropped | failed |",
        "|---|---|---|---|---|",
        *(f"| {s} | " + " | ".join(map(str, c.values())) + " |" for s, c in yields.items()),
        "",
        *judges_table(units, kept),
        "",
        *table("manipulation", units, kept),
        "",
        *table("type", units, kept),
        "",
        "Accuracy of telling the two answers apart by length alone, trained on one half of the "
        f"videos, tested on the other: {100 * by_length(units):.0f} % before the judge, "
        f"{100 * by_length(pairs):.0f} % of the final pairs; 50 % is chance.",
    ]


def main(_) -> None:
    """Render the videos, run the study and print it."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_videos(root / "videos", SEED, [96] * VIDEOS.value)
        lines = ["## Scripted answers", "", *run(root / "videos", root / "rules", None, None)]
        if CHECKPOINT.value:
            lines += ["", "## Answers of the quickstart's base model", ""]
            model = CHECKPOINT.value
            lines += run(root / "videos", root / "model", model, model)
    text = "\n".join(lines) + "\n"
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
