"""How numbers become cells of tables and lines of CSV files, the same on all pages."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tpo_jax.io.files import replacing_file, write_text
from tpo_jax.study.records import Candidate
from tpo_jax.study.results import Chosen, Results
from tpo_jax.study.statistics import Difference, Mean, holm, t_interval

Table = list[list[str]]
HEAD = ["difference", "95 % over seeds", "p", "p by Holm", "seeds above 0"]
SHOWN = 0.05  # largest p by Holm that gets a star


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def markdown(rows: Table) -> str:
    """Return a table in Markdown; its first row is the head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def shown(mean: Mean) -> str:
    """Return a mean and the half width of its interval, in percent."""
    if np.isnan(mean.mean):
        return ""
    if np.isnan(mean.low):
        return f"{100 * mean.mean:.1f}"
    return f"{100 * mean.mean:.1f} ± {100 * (mean.high - mean.mean):.1f}"


def verdict(found: Difference) -> str:
    """Return what the interval says of a difference that should be above 0."""
    if np.isnan(found.low):
        return "one seed: no interval"
    if found.low > 0:
        return "holds"
    return "the opposite holds" if found.high < 0 else "not shown"


def interval(low: float, high: float) -> str:
    """Return an interval of differences, in percent; empty if there is none."""
    return "" if np.isnan(low) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def starred(p: float) -> str:
    """Return a corrected p, with a star if it is small; empty if there is none."""
    return "" if np.isnan(p) else f"{p:.3f}" + " *" * bool(p < SHOWN)


def compared(found: Sequence[Difference]) -> Table:
    """Return the cells of `HEAD` in percent for all comparisons of a table, for whose number p is
    corrected.
    """
    return [
        [
            f"{100 * one.mean:+.1f}",
            interval(one.low, one.high),
            "" if np.isnan(one.p) else f"{one.p:.3f}",
            starred(corrected),
            f"{one.above} of {one.n}",
        ]
        for one, corrected in zip(found, holm([one.p for one in found]), strict=True)
    ]


def write_csv(
    path: Path, results: Results, rows: Sequence[str], columns: Mapping[str, Chosen]
) -> None:
    """Write a line per row and column: mean with interval, and the value of every seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "column", "seeds", "mean", "low", "high", "per seed"])
    for row in rows:
        seeds = results.there(row)
        for name, chosen in columns.items():
            values = results.accuracies(row, seeds, chosen)
            mean = t_interval(values)
            each = " ".join(f"{seed}:{v:.4f}" for seed, v in zip(seeds, values, strict=True))
            writer.writerow([row, name, mean.n, *(f"{v:.4f}" for v in mean[1:]), each])
    write_text(path, out.getvalue())


def quality_table(rows: Sequence[Candidate], kept: Sequence[bool]) -> Table:
    """Return how right the answers are that pairs are made from, per type and kind of question."""
    groups: dict[tuple[str, str], list[tuple[bool, ...]]] = defaultdict(list)
    for row, is_kept in zip(rows, kept, strict=True):
        groups[row.type, row.kind].append((row.chosen_right, row.rejected_right, is_kept))
    lines = [["type", "kind", "queries", "chosen right", "rejected right", "kept"]]
    for (name, kind), group in sorted(groups.items()):
        shares = [f"{share:.2f}" for share in np.mean(group, axis=0)]
        lines.append([name, kind, str(len(group)), *shares])
    return lines
