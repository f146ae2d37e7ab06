"""The page of a table or figure at miniature size: CSV, PNG and Markdown.

The paper's numbers stand beside ours, from whatever seeds have been run.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tpo_jax.curation.card import LENGTHS
from tpo_jax.curation.templates import TYPES
from tpo_jax.errors import InputError
from tpo_jax.evaluation.niah_files import heat_colours
from tpo_jax.io.files import read_json, read_lines, write_text
from tpo_jax.study import method
from tpo_jax.study.cells import (
    HEAD,
    compared,
    interval,
    markdown,
    save_figure,
    shown,
    verdict,
    write_csv,
)
from tpo_jax.study.items import ITEMS, METHOD, Item
from tpo_jax.study.results import Results, asked
from tpo_jax.study.statistics import paired, t_interval
from tpo_jax.study.tables import table

# Percentages of the paper's pictures; None where none is printed.
FIGURE5: dict[str, float | None] = dict.fromkeys(name for name, _ in LENGTHS)
FIGURE6: dict[str, float | None] = dict(TYPES)


def frames(item: Item, results: Results, path: Path) -> list[str]:
    """Return the sections of Figure 2, accuracy by number of frames."""
    every = [row for row in (*item.rows, *item.besides) if results.there(row)]
    first = results.answers("base", results.there("base")[0])
    counts = sorted({a.frames for a in first if a.seconds == 96 and a.frames})
    columns = {str(n): asked(96, n) for n in counts}
    write_csv(path.with_suffix(".csv"), results, every, columns)
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    ours = [["", "seeds", *(f"{n} frames" for n in counts)]]
    for row in every:
        means = [results.mean(row, chosen) for chosen in columns.values()]
        ours.append([item.label(row), str(means[0].n), *map(shown, means)])
        middle = 100 * np.array([m.mean for m in means])
        half = np.nan_to_num([100 * (m.high - m.mean) for m in means])
        axes.errorbar(counts, middle, half, fmt="o-", capsize=3, label=item.label(row))
    axes.set(xlabel="frames of a 96-second video", ylabel="accuracy in percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path.with_suffix(".png"))
    sections = ["Here, mean over seeds ± half of the 95 % interval:\n\n" + markdown(ours)]
    seeds = results.there("base", "tpo")
    if not seeds:
        return sections
    lines = [["TPO above base at", *HEAD, "95 % over videos"]]
    found = [results.difference("tpo", "base", chosen) for chosen in columns.values()]
    for (n, chosen), cells in zip(columns.items(), compared(found), strict=True):
        over = results.over_videos("tpo", "base", chosen)
        lines.append([f"{n} frames", *cells, interval(*over)])
    sections.append("Paired over seeds:\n\n" + markdown(lines))
    values = {
        (v, n): results.accuracies(v, seeds, asked(96, n)) for v in ("base", "tpo") for n in counts
    }
    few, many = counts[0], counts[-1]
    gain = {n: values["tpo", n] - values["base", n] for n in counts}
    lines = [["statement", *HEAD, "verdict"]]
    statements = (
        (f"the gain at {many} frames above that at {few}", gain[many], gain[few]),
        (f"the gain at {many} frames above that at 32", gain[many], gain[32]),
        (f"the base at 32 frames above itself at {many}", values["base", 32], values["base", many]),
        (f"TPO at {many} frames above itself at 32", values["tpo", many], values["tpo", 32]),
    )
    found = [paired(one, other) for _, one, other in statements]
    for (text, *_), one, cells in zip(statements, found, compared(found), strict=True):
        lines.append([text, *cells, verdict(one)])
    sections.append("What the figure shows, as differences:\n\n" + markdown(lines))
    return sections


def needles(item: Item, results: Results, path: Path) -> list[str]:
    """Return the sections of Figure 3, needles found by length and depth."""
    seeds = results.there(*item.rows)
    found = {row: [results.needles(row, seed) for seed in seeds] for row in item.rows}
    first = found["base"][0]
    lengths, depths = first.lengths, first.depths
    shares = {row: np.array([f.found for f in files]) for row, files in found.items()}
    maps = {item.label(row): (lengths, depths, share.mean(0)) for row, share in shares.items()}
    heat_maps(maps, path)
    lines = [["model", "length", *(f"depth {d:.1f}" for d in depths), "all depths"]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "length", "depth", "seeds", "mean", "per seed"])
    for row, share in shares.items():
        for i, length in enumerate(lengths):
            cells = [f"{100 * v:.0f}" for v in share.mean(0)[i]]
            lines.append(
                [item.label(row), str(length), *cells, shown(t_interval(share[:, i].mean(1)))]
            )
            for j, depth in enumerate(depths):
                each = share[:, i, j]
                cells = [row, str(length), f"{depth:.1f}", str(len(each)), f"{each.mean():.4f}"]
                writer.writerow([*cells, " ".join(f"{v:.4f}" for v in each)])
    write_text(path.with_suffix(".csv"), out.getvalue())
    by_seed = {v: share.mean((1, 2)) for v, share in shares.items()}
    difference = paired(by_seed["tpo"], by_seed["base"])
    over_seeds = [["all cells", *HEAD, "the paper's statement"]]
    over_seeds.append(["TPO above base", *compared([difference])[0], verdict(difference)])
    return [
        "The paper shows heat maps without numbers. Here, needles found in percent, mean over "
        f"{len(found['base'])} seeds:\n\n" + markdown(lines),
        "Paired over seeds:\n\n" + markdown(over_seeds),
    ]


def heat_maps(
    found: Mapping[str, tuple[Sequence[int], Sequence[float], np.ndarray]], path: Path
) -> None:
    """Draw maps side by side.

    Args:
        found: by title the frames, the depths from 0 to 1 and the shares found,
            `[frames, depths]`.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    every = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (title, (lengths, depths, shares)) in zip(every, found.items(), strict=True):
        picture = axes.imshow(shares.T, vmin=0, vmax=1, cmap=heat_colours(), aspect="auto")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), [f"{d:.1f}" for d in depths])
        axes.set(title=title, xlabel="frames", ylabel="depth")
    figure.colorbar(picture)
    save_figure(figure, path.with_suffix(".png"))


def pie(item: Item, results: Results, path: Path) -> list[str]:
    """Return the section of Figure 5 or 6, about the pairs that TPO is trained on."""
    seeds, counts = results.there("tpo"), Counter[str]()
    for seed in seeds:
        directory = results.run("tpo", seed).directory(results.workdir)
        if path.name == "figure6":
            types = {made.id: made.type for made in results.candidates(seed)}
            counts.update(types[pair["id"]] for _, pair in read_lines(directory / "judged.jsonl"))
        else:
            videos = read_json(directory / "long.json")
            ends = (next(name for name, end in LENGTHS if v["duration"] < end) for v in videos)
            counts.update(ends)
    printed = FIGURE6 if path.name == "figure6" else FIGURE5
    shares = pies(counts, printed, f"here, {len(seeds)} seeds", path)
    return [f"Seeds together, {sum(counts.values())} in all:\n\n{shares}"]


def pies(
    counts: Mapping[str, int], printed: Mapping[str, float | None], title: str, path: Path
) -> str:
    """Write CSV and PNG of shares beside the paper's; return them as a table.

    Args:
        counts: ours by class.
        printed: the paper's percentages, in the order of the page; None where it prints none.
        title: of our picture.
        path: of both files, without suffix.
    """
    total = max(1, sum(counts.values()))
    lines = [["", "the paper, %", "here, %"]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", "paper", "here"])
    for name, value in printed.items():
        ours = f"{100 * counts.get(name, 0) / total:.1f}"
        lines.append([name, "not printed" if value is None else str(value), ours])
        writer.writerow([name, "" if value is None else value, ours])
    write_text(path.with_suffix(".csv"), out.getvalue())
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    if all(value is not None for value in printed.values()):
        left.pie([v or 0 for v in printed.values()], labels=list(printed), autopct="%.1f %%")
    left.axis("off")
    left.set_title("the paper" if left.patches else "the paper prints no shares")
    there = [name for name in printed if counts.get(name)]
    right.pie([counts[name] for name in there], labels=there)
    right.set_title(title)
    save_figure(figure, path.with_suffix(".png"))
    return markdown(lines)


def write(name: str, workdir: Path, seeds: Sequence[int]) -> str:
    """Write `{name}.csv`, `.png` and `.md` in `workdir/pages/`; return the page.

    Raises:
        InputError: no seed has been run.
    """
    item = (ITEMS | METHOD)[name]
    results = Results(workdir, item.miniature, seeds)
    # A table shows the rows there are; a figure needs all it draws.
    wanted = item.rows if name.startswith("figure") else item.rows[:1]
    if not results.there(*wanted):
        raise InputError(
            f"--workdir={workdir}: {name}: {', '.join(wanted)} of {item.miniature} not there yet "
            f"for any seed of {', '.join(map(str, seeds))}"
        )
    folder = workdir / "pages"
    folder.mkdir(exist_ok=True)
    there = ", ".join(map(str, results.there(*item.rows))) or "none"
    if name in METHOD:
        seen = f"{item.miniature}; seeds with every row: {there}."
        sections = [seen, *method.page(item, results, folder / name)]
    else:
        seen = f"{item.miniature}; seeds with every row of the paper's: {there}."
        makers = {"figure2": frames, "figure3": needles, "figure5": pie, "figure6": pie}
        made = makers.get(name, table)(item, results, folder / name)
        sections = [seen, *made, f"![{item.title}]({name}.png)"]
    text = "\n\n".join([f"## {item.title}", *sections])
    write_text(folder / f"{name}.md", text + "\n")
    return text
