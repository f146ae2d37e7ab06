"""The pages of the paper's tables at miniature size."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tpo_jax.study.cells import (
    HEAD,
    Table,
    compared,
    interval,
    markdown,
    quality_table,
    save_figure,
    shown,
    verdict,
    write_csv,
)
from tpo_jax.study.items import ITEMS, Item
from tpo_jax.study.results import COLUMNS, MAIN, Chosen, Results, asked
from tpo_jax.study.stages import LONG_SECONDS

# The number of frames in TPO's training, and twice as many: the paper also trains with 32
# frames and evaluates with 96 to 128.
PAIRED = ("96 s, 32 frames", "96 s, 64 frames")


def table(item: Item, results: Results, path: Path) -> list[str]:
    """Return the sections of a table's page and write its CSV and PNG."""
    every = [v for v in (*item.rows, *item.besides) if results.there(v)]
    write_csv(path.with_suffix(".csv"), results, every, COLUMNS)
    figure = Figure(figsize=(7, 0.45 * len(every) + 1.2), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(every):
        mean, values = results.mean(row), results.accuracies(row, results.there(row))
        axes.plot(100 * values, np.full(len(values), at), "o", color="#bbbbbb", markersize=4)
        half = 0 if np.isnan(mean.low) else 100 * (mean.high - mean.mean)
        axes.errorbar(100 * mean.mean, at, xerr=half, fmt="o", capsize=4, color="#c0392b")
    axes.set_yticks(range(len(every)), [item.label(v) for v in every])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set(xlabel="accuracy in percent, 96 s, 32 frames; grey: seeds")
    save_figure(figure, path.with_suffix(".png"))

    head = ["", *item.columns]
    sections = ["The paper:\n\n" + markdown([head, *map(list, item.printed.values())])]
    if item.quoted:
        quoted = markdown([head, *([f"{name} (quoted)", *row] for name, *row in item.quoted)])
        sections.append("Quoted from the paper, not run here:\n\n" + quoted)
    ours = [["", "seeds", *COLUMNS]]
    ours += [
        [item.label(v), str(len(results.there(v)))]
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


def _differences(item: Item, results: Results, every: list[str], column: str) -> Table:
    """Compare the rows of one column, those that the paper compares first."""
    chosen = COLUMNS[column]
    stated = list(item.statements)
    stated += [("tpo", other) for other in item.besides if other in every]
    stated += [(v, "base") for v in every if v not in ("base", "tpo") and "base" in every]
    there = [pair for pair in dict.fromkeys(stated) if results.there(*pair)]
    found = {pair: results.difference(*pair, chosen) for pair in there}
    found = {
        pair: difference for pair, difference in found.items() if not np.isnan(difference.mean)
    }
    lines = [[column, *HEAD, "95 % over videos", "the paper's statement"]]
    for (one, other), cells in zip(found, compared([*found.values()]), strict=True):
        lines.append(
            [f"{item.label(one)} above {item.label(other)}", *cells]
            + [interval(*results.over_videos(one, other, chosen))]
            + [verdict(found[one, other]) if (one, other) in item.statements else ""]
        )
    return lines


def _types(results: Results) -> Table:
    """Compare base and TPO on every type and kind of question."""

    def of_type(name: str, kind: str, chosen: Chosen) -> Chosen:
        return lambda answer: chosen(answer) and (answer.type, answer.kind) == (name, kind)

    blind = asked(LONG_SECONDS, 0)
    first = results.answers("base", results.there("base")[0])
    with_blind = any(map(blind, first))
    lines = [["96 s, 32 frames", "base", "TPO", *HEAD, *["base, another video"] * with_blind]]
    names = sorted({(answer.type, answer.kind) for answer in first})
    found = [results.difference("tpo", "base", of_type(*name, MAIN)) for name in names]
    for name, cells in zip(names, compared(found), strict=True):
        sides = (results.mean(row, of_type(*name, MAIN)) for row in ("base", "tpo"))
        line = [", ".join(name), *map(shown, sides), *cells]
        if with_blind:
            line.append(shown(results.mean("base", of_type(*name, blind))))
        lines.append(line)
    return lines


def _pairs(results: Results) -> str:
    """Say how right the answers are that pairs are made of, before and after the judge."""
    rows = [made for seed in results.there("tpo") for made in results.candidates(seed)]
    kept = [row.chosen_right and not row.rejected_right and bool(row.rejected) for row in rows]
    return (
        "The answers that pairs are made of, all seeds; without the judge every pair whose answers "
        "differ is trained on, with it those in the last column:\n\n"
        + markdown(quality_table(rows, kept))
    )
