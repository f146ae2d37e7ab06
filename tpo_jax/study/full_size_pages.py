"""Pages of what the commands of `full_size` left: CSV, PNG and a table per item.

The paper's numbers stand beside ours.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json, replacing, write_text
from tpo_jax.study.cells import markdown, save_figure
from tpo_jax.study.full_size import (
    FIGURE2_FRAMES,
    PAPER_BENCHMARKS,
    SUBTITLED,
    Places,
    curated,
    evaluation,
    place,
)
from tpo_jax.study.items import ITEMS
from tpo_jax.study.pages import FIGURE5, FIGURE6, heat_maps, pies

LENGTHS = ("short", "medium", "long")
# What `curate` reports, and the paper's percentages.
_PIES = {"figure5": ("video lengths", FIGURE5), "figure6": ("question types", FIGURE6)}


Asked = tuple[str, int]  # benchmark and number of frames, 0: its own


def _read(folder: str, benchmark: str, num_frames: int) -> dict:
    """Return the summary of an evaluation; empty if it has not been run."""
    path = Path(evaluation(folder, benchmark, num_frames)) / "results.json"
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("tpo_jax"), dict):
        raise InputError(f"{path}: no results of `evaluate run`; remove it")
    return found["tpo_jax"]


def _percent(summary: dict) -> float | None:
    """Return the score of a benchmark in percent, as the paper prints it."""
    if not summary:
        return None
    return summary["score"] * (100 if summary["benchmark"].startswith("longvideobench") else 1)


def _summaries(item: str, folder: str) -> dict[Asked, dict]:
    """Return the summaries of a row, by benchmark and number of frames."""
    if item == "figure2":
        asked = [("mlvu_dev", n) for n in FIGURE2_FRAMES]
    else:
        asked = [(name, 0) for name in (*PAPER_BENCHMARKS.values(), *SUBTITLED.values())]
    return {(name, n): _read(folder, name, n) for name, n in asked}


def _cells(item: str, summaries: dict[Asked, dict]) -> dict[str, list[float | None]]:
    """Return the numbers of a row by column: without, and where printed, with subtitles."""
    if item == "figure2":
        return {str(n): [_percent(summary)] for (_, n), summary in summaries.items()}
    columns = ITEMS[item].columns
    if len(columns) == len(PAPER_BENCHMARKS):
        scores = [[_percent(summaries[name, 0])] for name in PAPER_BENCHMARKS.values()]
        return dict(zip(columns, scores, strict=True))
    *others, video_mme = PAPER_BENCHMARKS.values()
    scores = [[_percent(summaries[name, 0])] for name in others]
    found = [summaries[name, 0] for name in (video_mme, *SUBTITLED.values())]
    for length in LENGTHS:
        groups = [summary.get("breakdown", {}).get("duration", {}) for summary in found]
        scores.append([group.get(length, {}).get("percent") for group in groups])
    scores.append([_percent(summary) for summary in found])
    return dict(zip(columns, scores, strict=True))


def _partial(summaries: dict[Asked, dict]) -> list[str]:
    """Return what is missing of the evaluations of a row."""
    return [
        f"{evaluation('', name, n).strip('/')}, {summary['missing']} questions missing"
        for (name, n), summary in summaries.items()
        if summary.get("partial")
    ]


def _written(numbers: list[float | None]) -> str:
    """Return a cell: `52.6`, or `52.6/54.3` without and with subtitles; empty if unknown."""
    texts = ["" if number is None else f"{number:.1f}" for number in numbers]
    return "/".join(texts) if any(texts) else ""


def write(item: str, places: Places) -> str:
    """Write `pages/{item}.csv`, `.png` and `.md` in the working directory; return the page.

    The page is empty, and nothing is written, if nothing of the item has been run.

    Raises:
        InputError: results that cannot be read.
    """
    path = Path(places.workdir) / "pages" / item
    makers = {"figure3": _needles, "figure5": _shares, "figure6": _shares}
    sections = makers.get(item, _evaluated)(item, places, path)
    if not sections:
        return ""
    title = ITEMS[item].title
    text = "\n\n".join([f"## {title}, at 7B", *sections, f"![{title}]({item}.png)"])
    write_text(path.with_suffix(".md"), text + "\n")
    return text


def _needles(item: str, places: Places, path: Path) -> list[str]:
    """Return the sections of Figure 3 from the results of `evaluate niah`."""
    maps = {}
    for row in ITEMS[item].rows:
        file = Path(place(item, row, places)) / "niah/all_accuracies.json"
        if not file.exists():
            continue
        try:
            cells = defaultdict(list)  # several where depths fall together, rounded to tens
            for cell in read_json(file):
                cells[cell["Num. Frame"], cell["Frame Depth"]].append(cell["Score"])
            lengths, tens = (sorted(set(values)) for values in zip(*cells, strict=True))
            shares = np.array([[np.mean(cells[n, ten]) for ten in tens] for n in lengths])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: no results of `evaluate niah`; remove it") from error
        maps[row] = (lengths, [ten / 100 for ten in tens], shares)
    if not maps:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    titles = {row: ITEMS[item].label(row) for row in maps}
    heat_maps({titles[row]: found for row, found in maps.items()}, path)
    lines = [["model", "frames", "needles found, %"]]
    with replacing(path.with_suffix(".csv")) as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "frames", "depth", "found"])
        for row, (lengths, depths, shares) in maps.items():
            for length, found in zip(lengths, shares, strict=True):
                lines.append([titles[row], str(length), f"{100 * found.mean():.1f}"])
                writer.writerows(
                    [row, length, f"{depth:.1f}", f"{share:.4f}"]
                    for depth, share in zip(depths, found, strict=True)
                )
    return ["The paper shows heat maps without numbers. Here:\n\n" + markdown(lines)]


def _shares(item: str, places: Places, path: Path) -> list[str]:
    """Return the section of Figure 5 or 6 from the report of `curate`."""
    report = Path(curated(item, places)) / "report.json"
    field, printed = _PIES[item]
    if not report.exists():
        return []
    try:
        counts = {name: int(n) for name, n in read_json(report)[field].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{report}: no report of `curate`; remove it") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    return [f"{sum(counts.values())} in all:\n\n{pies(counts, printed, 'here', path)}"]


def _evaluated(item: str, places: Places, path: Path) -> list[str]:
    """Return the sections of a table or Figure 2 from the results of `evaluate run`."""
    shown = ITEMS[item]
    found = {row: _summaries(item, place(item, row, places)) for row in ITEMS[item].rows}
    rows = {row: _cells(item, summaries) for row, summaries in found.items()}
    if not any(number is not None for row in rows.values() for n in row.values() for number in n):
        return []
    columns = list(next(iter(rows.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_suffix(".csv")) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "column", "subtitles", "percent"])
        for row, cells in rows.items():
            for column, numbers in cells.items():
                for subtitles, number in enumerate(numbers):
                    if number is not None:
                        writer.writerow([row, column, subtitles, f"{number:.3f}"])
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for row, cells in rows.items():
        heights = np.array([cells[column][0] for column in columns], float)  # None: not a number
        axes.plot(columns, heights, "o-", label=shown.label(row))
    axes.set(ylabel="percent, without subtitles")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path.with_suffix(".png"))

    sections = []
    if shown.printed:
        printed = [["", *shown.columns], *map(list, shown.printed.values())]
        sections.append("The paper:\n\n" + markdown(printed))
    ours = [["", *columns]]
    for row, cells in rows.items():
        ours.append([shown.label(row), *(_written(cells[column]) for column in columns)])
    sections.append("Here:\n\n" + markdown(ours))
    partial = [
        f"- {shown.label(row)}: {what}"
        for row, summaries in found.items()
        for what in _partial(summaries)
    ]
    if partial:
        sections.append("Partial scores:\n\n" + "\n".join(partial))
    return sections
