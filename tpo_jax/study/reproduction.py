"""Tables and figures of the paper in miniature: CSV, PNG and a Markdown page of each, the paper's
numbers beside ours, from whatever seeds have been carried out.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json
from tpo_jax.study import figures as study_figures
from tpo_jax.study import report
from tpo_jax.study import settings as study
from tpo_jax.study.items import (
    HEAD,
    ITEMS,
    Item,
    compared,
    label,
    markdown,
    shown,
    verdict,
    write_csv,
)
from tpo_jax.study.miniature import LONG_SECONDS
from tpo_jax.study.results import COLUMNS, MAIN, Results, asked

# The number of frames in TPO's training, and twice as many: the paper, too, trains with 32 frames
# and asks with 96 to 128.
PAIRED = ("96 s, 32 frames", "96 s, 64 frames")


def _table(item: Item, results: Results, path: Path) -> list[str]:
    """The sections of a table's page; writes its CSV and PNG."""
    every = [v for v in (*item.variants, *item.besides) if results.there(v)]
    write_csv(path.with_suffix(".csv"), results, every, COLUMNS)
    figure = Figure(figsize=(7, 0.45 * len(every) + 1.2), layout="constrained")
    axes = figure.subplots()
    for at, variant in enumerate(every):
        mean, values = results.mean(variant), results.accuracies(variant, results.there(variant))
        axes.plot(100 * values, np.full(len(values), at), "o", color="#bbbbbb", markersize=4)
        half = 0 if np.isnan(mean.low) else 100 * (mean.high - mean.mean)
        axes.errorbar(100 * mean.mean, at, xerr=half, fmt="o", capsize=4, color="#c0392b")
    axes.set_yticks(range(len(every)), [label(item, v) for v in every])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set(xlabel="accuracy in percent, 96 s, 32 frames; grey: seeds")
    figure.savefig(path.with_suffix(".png"), dpi=110)

    head = ["", *item.columns]
    sections = ["The paper:\n\n" + markdown([head, *map(list, item.printed.values())])]
    if item.quoted:
        quoted = markdown([head, *([f"{name} (quoted)", *row] for name, *row in item.quoted)])
        sections.append("Quoted from the paper, not run here:\n\n" + quoted)
    ours = [["", "seeds", *COLUMNS]]
    ours += [
        [label(item, v), str(len(results.there(v)))]
        + [shown(results.mean(v, chosen)) for chosen in COLUMNS.values()]
        for v in every
    ]
    sections.append("Here, mean over seeds ± half of the 95 % interval:\n\n" + markdown(ours))
    for name in PAIRED:
        lines = _differences(item, results, every, name)
        if len(lines) > 1:
            sections.append(f"Paired over seeds, {name}:\n\n" + markdown(lines))
    if item.by_type and results.there("base", "tpo"):
        sections.append("By type of question:\n\n" + markdown(_types(results)))
    if item is ITEMS["table4"]:
        sections.append(_pairs(results))
    return sections


def _differences(item: Item, results: Results, every: list[str], column: str) -> list[list[str]]:
    """What the paper states about pairs of rows, and what else is of interest, in one column."""
    chosen = COLUMNS[column]
    lines = [[column, *HEAD, "95 % over videos", "the paper's statement"]]
    stated = list(item.statements)
    stated += [("tpo", other) for other in item.besides if other in every]
    stated += [(v, "base") for v in every if v not in ("base", "tpo") and "base" in every]
    for one, other in dict.fromkeys(stated):
        found = results.difference(one, other, chosen) if results.there(one, other) else None
        if found and not np.isnan(found.mean):
            lines.append(
                [f"{label(item, one)} above {label(item, other)}"]
                + compared(found, results.over_videos(one, other, chosen))
                + [verdict(found) if (one, other) in item.statements else ""]
            )
    return lines


def _types(results: Results) -> list[list[str]]:
    """Base and TPO on every type and kind of question."""
    blind = asked(LONG_SECONDS, 0)
    head = ["96 s, 32 frames", "base", "TPO", *HEAD]
    first = results.rows("base", results.there("base")[0])
    rows = [[*head, "base, another video"] if any(map(blind, first)) else head]
    for name, kind in sorted({(row["type"], row["kind"]) for row in first}):

        def chosen(row: dict, of=MAIN, name: str = name, kind: str = kind) -> bool:
            return of(row) and (row["type"], row["kind"]) == (name, kind)

        means = [shown(results.mean(variant, chosen)) for variant in ("base", "tpo")]
        found = compared(results.difference("tpo", "base", chosen))
        words_alone = [shown(results.mean("base", functools.partial(chosen, of=blind)))]
        rows.append([f"{name}, {kind}", *means, *found, *words_alone[: len(rows[0]) - len(head)]])
    return rows


def _pairs(results: Results) -> str:
    """How good the base models' answers are that pairs are made of, before and after the judge."""
    rows = []
    for seed in results.there("tpo"):
        directory = study.Run(results.family, seed, "tpo").directory(results.workdir)
        for row in read_json(directory / "answers.json"):
            kept = row["chosen_right"] and not row["rejected_right"]
            rows.append(row | {"kept": kept and bool(row["rejected"])})
    return (
        "The answers that pairs are made of, all seeds; without the judge every pair whose answers "
        "differ is trained on, with it those in the last column:\n\n" + report.quality_table(rows)
    )


def write(name: str, workdir: Path, seeds: Sequence[int]) -> str:
    """Writes `{name}.csv`, `.png` and `.md` in `workdir/pages/`; returns the page.

    Raises:
        InputError: no seed has been carried out.
    """
    item = ITEMS[name]
    results = Results(workdir, item.family, seeds)
    # A table shows the rows there are; a figure needs all it draws.
    wanted = item.variants[:1] if name.startswith("table") else item.variants
    if not results.there(*wanted):
        raise InputError(
            f"--workdir={workdir}: {name}: {', '.join(wanted)} of {item.family} not there yet for "
            f"any seed of {', '.join(map(str, seeds))}"
        )
    folder = workdir / "pages"
    folder.mkdir(exist_ok=True)
    maker = {
        "figure2": study_figures.frames,
        "figure3": study_figures.needles,
        "figure5": study_figures.pie,
        "figure6": study_figures.pie,
    }
    sections = maker.get(name, _table)(item, results, folder / name)
    there = ", ".join(map(str, results.there(*item.variants))) or "none"
    seen = f"{item.family}; seeds with every row of the paper's: {there}."
    text = "\n\n".join([f"## {item.title}", seen, *sections, f"![{item.title}]({name}.png)"])
    (folder / f"{name}.md").write_text(text + "\n")
    return text
