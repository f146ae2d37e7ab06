"""The paper's figures in miniature: each function writes CSV and PNG and returns the sections of
the page.
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
from tpo_jax.evaluation.niah_files import heat_colours
from tpo_jax.io.files import read_json, read_lines
from tpo_jax.study import settings as study
from tpo_jax.study.items import (
    HEAD,
    Item,
    compared,
    label,
    markdown,
    shown,
    verdict,
    write_csv,
)
from tpo_jax.study.results import Results, asked
from tpo_jax.study.statistics import paired, t_interval

# Percentages of the paper's pictures; None where none is printed.
FIGURE5: dict[str, float | None] = dict.fromkeys(name for name, _ in LENGTHS)
FIGURE6: dict[str, float | None] = dict(TYPES)


def frames(item: Item, results: Results, path: Path) -> list[str]:
    """Figure 2."""
    every = [v for v in (*item.variants, *item.besides) if results.there(v)]
    first = results.rows("base", results.there("base")[0])
    counts = sorted({r["frames"] for r in first if r["seconds"] == 96 and r["frames"]})
    columns = {str(n): asked(96, n) for n in counts}
    write_csv(path.with_suffix(".csv"), results, every, columns)
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    ours = [["", "seeds", *(f"{n} frames" for n in counts)]]
    for variant in every:
        means = [results.mean(variant, chosen) for chosen in columns.values()]
        ours.append([label(item, variant), str(means[0].n), *map(shown, means)])
        middle = 100 * np.array([m.mean for m in means])
        half = np.nan_to_num([100 * (m.high - m.mean) for m in means])
        axes.errorbar(counts, middle, half, fmt="o-", capsize=3, label=label(item, variant))
    axes.set(xlabel="frames of a 96-second video", ylabel="accuracy in percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    sections = ["Here, mean over seeds ± half of the 95 % interval:\n\n" + markdown(ours)]
    seeds = results.there("base", "tpo")
    if not seeds:
        return sections
    lines = [["TPO above base at", *HEAD, "95 % over videos"]]
    for n, chosen in columns.items():
        found = results.difference("tpo", "base", chosen)
        over = results.over_videos("tpo", "base", chosen)
        lines.append([f"{n} frames", *compared(found, over)])
    sections.append("Paired over seeds:\n\n" + markdown(lines))
    values = {
        (v, n): results.accuracies(v, seeds, asked(96, n)) for v in ("base", "tpo") for n in counts
    }
    few, many = counts[0], counts[-1]
    gain = {n: values["tpo", n] - values["base", n] for n in counts}
    lines = [["statement", *HEAD, "verdict"]]
    for text, one, other in (
        (f"the gain at {many} frames above that at {few}", gain[many], gain[few]),
        (f"the gain at {many} frames above that at 32", gain[many], gain[32]),
        (f"the base at 32 frames above itself at {many}", values["base", 32], values["base", many]),
        (f"TPO at {many} frames above itself at 32", values["tpo", many], values["tpo", 32]),
    ):
        found = paired(one, other)
        lines.append([text, *compared(found), verdict(found)])
    sections.append("What the figure shows, as differences:\n\n" + markdown(lines))
    return sections


def needles(item: Item, results: Results, path: Path) -> list[str]:
    """Figure 3."""
    found = {}
    for variant in item.variants:
        seeds = results.there(*item.variants)
        run = [study.Run(results.family, seed, variant) for seed in seeds]
        found[variant] = [read_json(r.needles(results.workdir)) for r in run]
    first = found["base"][0]
    lengths, depths = first["lengths"], first["depths"]
    shares = {v: np.array([f["found"] for f in files]) for v, files in found.items()}
    maps = {label(item, v): (lengths, depths, share.mean(0)) for v, share in shares.items()}
    heat_maps(maps, path)
    lines = [["model", "length", *(f"depth {d:.1f}" for d in depths), "all depths"]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "length", "depth", "seeds", "mean", "per seed"])
    for variant, share in shares.items():
        for i, length in enumerate(lengths):
            cells = [f"{100 * v:.0f}" for v in share.mean(0)[i]]
            lines.append(
                [label(item, variant), str(length), *cells, shown(t_interval(share[:, i].mean(1)))]
            )
            for j, depth in enumerate(depths):
                each = share[:, i, j]
                row = [variant, length, f"{depth:.1f}", len(each), f"{each.mean():.4f}"]
                writer.writerow([*row, " ".join(f"{v:.4f}" for v in each)])
    path.with_suffix(".csv").write_text(out.getvalue())
    by_seed = {v: share.mean((1, 2)) for v, share in shares.items()}
    difference = paired(by_seed["tpo"], by_seed["base"])
    over_seeds = [["all cells", *HEAD, "the paper's statement"]]
    over_seeds.append(["TPO above base", *compared(difference), verdict(difference)])
    return [
        "The paper shows heat maps without numbers. Here, needles found in percent, mean over "
        f"{len(found['base'])} seeds:\n\n" + markdown(lines),
        "Paired over seeds:\n\n" + markdown(over_seeds),
    ]


def heat_maps(
    found: Mapping[str, tuple[Sequence[int], Sequence[float], np.ndarray]], path: Path
) -> None:
    """Draws maps side by side.

    Args:
        found: by title, frames, depths from 0 to 1 and the shares that were found, `[frames,
            depths]`.
        path: of the PNG.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    every = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (title, (lengths, depths, shares)) in zip(every, found.items(), strict=True):
        picture = axes.imshow(shares.T, vmin=0, vmax=1, cmap=heat_colours(), aspect="auto")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), [f"{d:.1f}" for d in depths])
        axes.set(title=title, xlabel="frames", ylabel="depth")
    figure.colorbar(picture)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def pie(item: Item, results: Results, path: Path) -> list[str]:
    """Figures 5 and 6: of the pairs that TPO is trained on."""
    seeds, counts = results.there("tpo"), Counter[str]()
    for seed in seeds:
        directory = study.Run(results.family, seed, "tpo").directory(results.workdir)
        if path.name == "figure6":
            types = {row["id"]: row["type"] for row in read_json(directory / "answers.json")}
            pairs = read_lines(directory / "judged.jsonl")
            counts.update(types[pair["id"]] for _, pair in pairs)
        else:
            videos = read_json(directory / "long.json")
            ends = (next(name for name, end in LENGTHS if v["duration"] < end) for v in videos)
            counts.update(ends)
    printed = FIGURE6 if path.name == "figure6" else FIGURE5
    table = pies(counts, printed, f"here, {len(seeds)} seeds", path)
    return [f"Seeds together, {sum(counts.values())} in all:\n\n{table}"]


def pies(
    counts: Mapping[str, int], printed: Mapping[str, float | None], title: str, path: Path
) -> str:
    """Writes CSV and PNG of shares beside the paper's; returns them as a table.

    Args:
        counts: ours by class.
        printed: the paper's percentages, in the order of the page; None where it prints none.
        title: of our picture.
        path: of both files, without their endings.
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
    path.with_suffix(".csv").write_text(out.getvalue())
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    if all(value is not None for value in printed.values()):
        left.pie([v or 0 for v in printed.values()], labels=list(printed), autopct="%.1f %%")
    left.axis("off")
    left.set_title("the paper" if left.patches else "the paper prints no shares")
    there = [name for name in printed if counts.get(name)]
    right.pie([counts[name] for name in there], labels=there)
    right.set_title(title)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    return markdown(lines)
