"""The pictures of the quickstart and of the pages on the method: all is named where it stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tpo_jax.study.cells import save_figure
from tpo_jax.study.stages import LONG_FRAMES, LONG_SECONDS
from tpo_jax.study.statistics import Mean

COLOURS = {"base": "#8a8a8a", "tpo": "#1f6fb2", "best": "#c4501b"}
NAMES = {"base": "base", "tpo": "TPO", "best": "best recipe"}
OTHERS = ("#1f6fb2", "#8a8a8a", "#c4501b")
GREY = "#555555"


def _percent(means: Sequence[Mean]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means and ends of intervals in percent, those of one seed at its mean."""
    middle, low, high = np.array([(m.mean, m.low, m.high) for m in means]).T * 100
    return middle, np.where(np.isnan(low), middle, low), np.where(np.isnan(high), middle, high)


def _plain(axes: Axes, title: str) -> None:
    """Set the title and leave away what carries no number."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.tick_params(length=0, colors=GREY)
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)


def _spread(heights: Sequence[float], apart: float) -> np.ndarray:
    """Return heights of labels near the given ones, none closer to another than `apart`."""
    order = np.argsort(heights)
    placed = np.array(heights, float)[order]
    for _ in range(50):  # push neighbours apart, both by as much
        gaps = apart - np.diff(placed)
        for i in np.flatnonzero(gaps > 1e-9):
            placed[i] -= gaps[i] / 2
            placed[i + 1] += gaps[i] / 2
    found = np.empty(len(placed))
    found[order] = placed
    return found


def _lines(
    axes: Axes, xs: Sequence[int], lines: Mapping[str, Sequence[Mean]], colours: Sequence[str]
) -> None:
    """Draw lines with the bands of their intervals, each named at its right end."""
    ends, width = [], max(1, xs[-1] - xs[0])
    for means, colour in zip(lines.values(), colours, strict=True):
        middle, low, high = _percent(means)
        axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(xs, middle, "o-", color=colour, linewidth=2.2, markersize=5)
        ends.append(middle[-1])
    bottom, top = axes.get_ylim()
    places = _spread(ends, 0.065 * (top - bottom))
    for name, colour, y in zip(lines, colours, places, strict=True):
        right = xs[-1] + 0.02 * width
        axes.text(right, y, name, color=colour, va="center", fontsize=11, fontweight="bold")
    axes.set_xticks(xs)
    axes.set_xlim(xs[0] - 0.02 * width, xs[-1] + 0.2 * width)
    axes.yaxis.set_major_formatter("{x:.0f} %")


def by_frames(counts: Sequence[int], means: Mapping[str, Sequence[Mean]], path: Path) -> str:
    """Draw accuracy by number of frames with the band of the 95 % interval; return the title.

    Args:
        counts: numbers of frames, ascending.
        means: of each row, one for each number.
        path: of the file, without suffix.
    """
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    many, title = counts[-1], "Accuracy of the base by number of frames"
    if "tpo" in means:
        gain = {n: means["tpo"][i].mean - means["base"][i].mean for i, n in enumerate(counts)}
        title = (
            f"TPO differs from its base by {100 * gain[LONG_FRAMES]:+.0f} points at {LONG_FRAMES} "
        )
        title += f"frames, {100 * gain[many]:+.0f} at {many}"
        if min(gain[many], gain[LONG_FRAMES]) > 0:
            title = f"TPO gains {100 * gain[LONG_FRAMES]:.0f} points at {LONG_FRAMES} frames, "
            title += f"{100 * gain[many]:.0f} at {many}"
    named = {NAMES[row]: of for row, of in means.items()}
    _lines(axes, counts, named, [COLOURS[row] for row in means])
    _plain(axes, title)
    axes.set_xlabel(f"frames of a {LONG_SECONDS}-second video", color=GREY)
    axes.set_ylabel("questions answered right", color=GREY)
    save_figure(figure, path.with_suffix(".png"))
    return title


def by_type(means: Mapping[str, Mapping[str, Mean]], path: Path, over: str = "seeds") -> str:
    """Draw accuracy by type of question, rows side by side; return the title.

    Args:
        means: by type and row; every type has the same rows.
        path: of the file, without suffix.
        over: what the intervals are over.
    """
    figure = Figure(figsize=(7.5, 0.55 * len(means) + 1.6), layout="constrained")
    axes = figure.subplots()

    def gain(name: str) -> float:
        of = means[name]
        return of["tpo"].mean - of["base"].mean if "tpo" in of else 0.0

    ordered = sorted(means, key=gain)
    best = ordered[-1]
    title = "Accuracy of the base by type of question"
    if "tpo" in means[best]:
        before, after = (100 * means[best][row].mean for row in ("base", "tpo"))
        title = f"TPO helps most with {best}: {before:.0f} to {after:.0f} % at {LONG_FRAMES} frames"
        if after <= before:
            title = f"TPO helps with no type of question at {LONG_FRAMES} frames"
    for y, name in enumerate(ordered):
        middles = [100 * mean.mean for mean in means[name].values()]
        axes.plot([min(middles), max(middles)], [y, y], color="#dddddd", linewidth=5, zorder=1)
        for row, mean in means[name].items():
            middle, low, high = _percent([mean])
            axes.plot([low[0], high[0]], [y, y], color=COLOURS[row], alpha=0.6, zorder=2)
            axes.plot(middle, [y], "o", color=COLOURS[row], markersize=9, zorder=3)
    rows = [*means[best]]
    left, right = axes.get_xlim()
    places = _spread([100 * means[best][row].mean for row in rows], 0.14 * (right - left))
    for row, x in zip(rows, places, strict=True):
        place = (x, len(ordered) - 0.62)
        axes.text(*place, NAMES[row], color=COLOURS[row], ha="center", fontweight="bold")
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_ylim(-0.6, len(ordered) - 0.3)
    axes.xaxis.set_major_formatter("{x:.0f} %")
    _plain(axes, title)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"questions answered right; thin lines: 95 % interval over {over}", color=GREY)
    save_figure(figure, path.with_suffix(".png"))
    return title


def by_error(errors: Sequence[int], means: Mapping[str, Sequence[Mean]], path: Path) -> str:
    """Draw accuracy by the judge's error rate in percent; return the title."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    lost = {name: 100 * (of[0].mean - of[-1].mean) for name, of in means.items()}
    worst = max(lost, key=lambda name: lost[name])
    title = f"A judge who errs in {errors[-1]} % costs {worst} most: {lost[worst]:.0f} points"
    if lost[worst] <= 0:
        title = f"A judge who errs in {errors[-1]} % costs nothing"
    _lines(axes, errors, means, OTHERS[: len(means)])
    _plain(axes, title)
    axes.set_xlabel("verdicts that are wrong, percent", color=GREY)
    axes.set_ylabel(f"answered right, {LONG_FRAMES} frames", color=GREY)
    save_figure(figure, path.with_suffix(".png"))
    return title


def by_row(means: Mapping[str, Mean], path: Path) -> str:
    """Draw one accuracy a row with its interval, named at the left; return the title."""
    figure = Figure(figsize=(7.5, 0.42 * len(means) + 1.2), layout="constrained")
    axes = figure.subplots()
    for y, mean in enumerate(means.values()):
        middle, low, high = _percent([mean])
        axes.plot([low[0], high[0]], [y, y], color=OTHERS[0], alpha=0.5)
        axes.plot(middle[0], y, "o", color=OTHERS[0], markersize=8)
    title = f"Accuracy with {LONG_FRAMES} frames, 95 % interval over seeds"
    axes.set_yticks(range(len(means)), [*means])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:.0f} %")
    _plain(axes, title)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.8)
    save_figure(figure, path.with_suffix(".png"))
    return title
