"""The pages on the method that the paper does not have: what its parts do, and how it compares."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tpo_jax.io.files import write_text
from tpo_jax.study import pictures
from tpo_jax.study.cells import SHOWN, Table, interval, markdown, shown, starred, write_csv
from tpo_jax.study.gates import MASTERED, gates, gates_of_seeds
from tpo_jax.study.items import METHOD, Item
from tpo_jax.study.results import COLUMNS, MAIN, SHORT, Chosen, Results, asked
from tpo_jax.study.rows import JUDGE_ERRORS, PREFERENCE_OR_NOT
from tpo_jax.study.stages import LONG_FRAMES, LONG_SECONDS
from tpo_jax.study.statistics import Difference, holm, t_interval

KINDS = {
    name: COLUMNS[name] for name in ("localized", "comprehensive", "sentences", "bare words")
} | {"another video": asked(LONG_SECONDS, 0)}
PREFERENCE = """\
Supervised training makes every word of the chosen answer likelier, the wrong ones, too. The \
gradient of the preference is that of log π(chosen) − log π(rejected), in which what both answers \
share cancels, so only the words are trained in which the chosen answer is better. On pairs whose \
answers have a wrong word in common, so that no chosen answer is right, training with the \
preference must therefore be above supervised training: the paired t-test of DPO alone against \
SFT_Self decides that, at 32 frames and corrected."""


def page(item: Item, results: Results, path: Path) -> list[str]:
    """Return the sections of a page on the method; write its CSV files and PNGs."""
    every = [row for row in item.rows if results.there(row)]
    columns, types = _asked_columns(results, every), _types(results)
    write_csv(path.with_suffix(".csv"), results, every, columns | types | KINDS)
    sections = [PREFERENCE] if item is METHOD["preference"] else []
    if item is METHOD["method"]:
        sections += _bases(results)
    sections.append(
        f"Accuracy in percent on {LONG_SECONDS}-second videos by number of frames, on short videos "
        "and, of the needles over all lengths and depths, the share found: mean over seeds ± half "
        "of the 95 % interval:\n\n" + markdown(_accuracies(results, item, every, columns))
    )
    compared = [("base", [(row, "base") for row in every if row != "base"])]
    if item is METHOD["method"]:
        compared.append(("TPO", [(row, "tpo") for row in every if row not in ("base", "tpo")]))
    compared.append(("each other", [pair for pair in item.statements if results.there(*pair)]))
    lines = [["against", "model", "other", "column", "seeds", "mean", "low", "high", "p", "Holm"]]
    shown_columns = {name: chosen for name, chosen in columns.items() if name in _COMPARED}
    for against, pairs in compared:
        if pairs and results.there("base"):
            made, rows = _differences(results, item, pairs, shown_columns)
            sections.append(
                f"Against {against}: difference in points, 95 % interval over seeds, p of the "
                "paired t-test corrected by Holm's method for all cells of this table; a star: "
                f"below {SHOWN}:\n\n" + markdown(made)
            )
            lines += [[against, *row] for row in rows]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    write_text(path.with_name(f"{path.name}_differences.csv"), out.getvalue())
    for title, chosen in (("type", types), ("kind and form", KINDS)):
        table = _accuracies(results, item, every, chosen)
        sections.append(f"By {title} of question, {LONG_FRAMES} frames:\n\n" + markdown(table))
    return sections + _pictures(item, results, every, path)


def _bases(results: Results) -> list[str]:
    """Return the section on what the bases show, if any has answered what pairs are made of."""
    made = {seed: results.candidates(seed) for seed in results.there("base")}
    found = [gates(results.answers("base", seed), of) for seed, of in made.items() if of]
    if not found:
        return []
    return [
        f"What the bases show, {len(found)} seeds: accuracy on short videos, of the chosen answers "
        "before the judge and among frames of the whole video; for how many seeds pairs can teach "
        f"something, have little to teach, or the type is not mastered ({MASTERED:.2f} of short "
        "videos):\n\n" + markdown(gates_of_seeds(found))
    ]


_COMPARED = (*(f"{n} frames" for n in (16, 32, 64, 96)), "short videos")


def _asked_columns(results: Results, rows: Sequence[str]) -> dict[str, Chosen]:
    """Return the numbers of frames at which a row was asked about long videos, and short videos."""
    answers = [a for row in rows for a in results.answers(row, results.there(row)[0])]
    counts = sorted({a.frames for a in answers if a.seconds == LONG_SECONDS and a.frames})
    columns = {f"{n} frames": asked(LONG_SECONDS, n) for n in counts}
    return columns | ({"short videos": SHORT} if any(map(SHORT, answers)) else {})


def _types(results: Results) -> dict[str, Chosen]:
    """Return the types of questions about long videos, seen with the frames of training."""

    def of(name: str) -> Chosen:
        return lambda answer: MAIN(answer) and answer.type == name

    first = results.answers("base", results.there("base")[0])
    return {name: of(name) for name in sorted({a.type for a in first if MAIN(a)})}


def _accuracies(
    results: Results, item: Item, rows: Sequence[str], columns: Mapping[str, Chosen]
) -> Table:
    """Return a line per row of the page, empty where nothing was asked; needles beside `SHORT`."""
    needles = SHORT in columns.values()
    lines = [["", "seeds", *columns, *["needles"] * needles]]
    for row in rows:
        cells = [shown(results.mean(row, chosen)) for chosen in columns.values()]
        if needles:
            found = results.needles_found(row)
            cells.append(shown(t_interval(found)) if len(found) else "")
        lines.append([item.label(row), str(len(results.there(row))), *cells])
    return lines


def _differences(
    results: Results,
    item: Item,
    pairs: Sequence[tuple[str, str]],
    columns: Mapping[str, Chosen],
) -> tuple[Table, Table]:
    """Compare pairs of rows in all columns, p corrected for the number of all of them.

    Returns:
        The table of the page, and lines of the CSV file: both rows, column, seeds, mean, interval,
        p and p by Holm.
    """
    found: dict[tuple[str, str], dict[str, Difference]] = {
        pair: {name: results.difference(*pair, chosen) for name, chosen in columns.items()}
        for pair in pairs
    }
    corrected = iter(holm([one.p for each in found.values() for one in each.values()]).tolist())
    table, lines = [["", "seeds", *columns]], list[list[str]]()
    for (ours, theirs), each in found.items():
        cells = []
        for name, one in each.items():
            p = next(corrected)
            parts = (f"{100 * one.mean:+.1f}", interval(one.low, one.high), starred(p))
            cells.append("" if np.isnan(one.mean) else " ".join(filter(None, parts)))
            numbers = [f"{value:.4f}" for value in (one.mean, one.low, one.high, one.p, p)]
            lines.append([ours, theirs, name, str(one.n), *numbers])
        label = f"{item.label(ours)} above {item.label(theirs)}"
        table.append([label, str(len(results.there(ours, theirs))), *cells])
    return table, lines


def _pictures(item: Item, results: Results, rows: Sequence[str], path: Path) -> list[str]:
    """Draw what a page shows; return the lines that name the files."""
    if item is METHOD["method"]:
        drawn = [row for row in ("base", "tpo", "best") if row in rows]
        columns = _asked_columns(results, drawn)
        counts = {int(name.split()[0]): chosen for name, chosen in columns.items() if " f" in name}
        by_frames = {row: [results.mean(row, c) for c in counts.values()] for row in drawn}
        by_type = {
            name: {row: results.mean(row, chosen) for row in drawn}
            for name, chosen in _types(results).items()
        }
        types = path.with_name(f"{path.name}_types")
        captions = {
            path.name: pictures.by_frames([*counts], by_frames, path),
            types.name: pictures.by_type(by_type, types),
        }
    elif item is METHOD["judge"]:
        errors = (0, *JUDGE_ERRORS)
        named = {
            label: [name, *(f"{name}_judge_{n}" for n in JUDGE_ERRORS)]
            for name, (label, _) in PREFERENCE_OR_NOT.items()
        }
        lines = {
            label: [results.mean(row) for row in of]
            for label, of in named.items()
            if all(row in rows for row in of)
        }
        captions = {path.name: pictures.by_error(errors, lines, path)} if lines else {}
    else:
        means = {item.label(row): results.mean(row) for row in rows}
        captions = {path.name: pictures.by_row(means, path)}
    return [f"![{caption}]({name}.png)" for name, caption in captions.items()]
