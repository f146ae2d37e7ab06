"""Pictures of a curated list: lengths and types (Figures 5 and 6 of the paper), yields, answers."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tpo_jax.curation.card import agreement


def charts(numbers: Mapping[str, Any], units: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SVG pictures by name; equal input, equal bytes.

    Args:
        numbers: `card.statistics` with `yields` per stage.
        units: balanced units.
    """
    pies = Figure(figsize=(11, 4), layout="constrained")
    names = (("video lengths", "Length of the videos"), ("question types", "Types of question"))
    for axes, (name, title) in zip(pies.subplots(1, 2), names, strict=True):
        there = {label: count for label, count in numbers[name].items() if count}
        axes.pie(list(there.values()), labels=list(there), autopct="%.1f %%", textprops={"size": 8})
        axes.set_title(title)
    bars = Figure(figsize=(13, 3.6), layout="constrained")
    left, middle, right = bars.subplots(1, 3)
    yields = numbers["yields"]
    bottom = np.zeros(len(yields))
    for name, colour in (("items", "#27ae60"), ("dropped", "#bbbbbb"), ("set aside", "#c0392b")):
        counts = np.array([stage[name] for stage in yields.values()], float)
        left.bar(list(yields), counts, bottom=bottom, label=name, color=colour)
        bottom += counts
    left.set(title="Yield of the stages", ylabel="number")
    left.tick_params(axis="x", rotation=30)
    left.legend(fontsize=8)
    sides = [[len(unit[side].split()) for unit in units] for side in ("chosen", "rejected")]
    middle.hist(sides, bins=20, label=["chosen", "rejected"], color=["#27ae60", "#888888"])
    middle.set(title="Length of the answers", xlabel="words", ylabel="pairs")
    middle.legend(fontsize=8)
    shared = [100 * agreement(unit) for unit in units]
    right.hist(shared, bins=np.linspace(0, 100, 21), color="#2980b9")
    title = f"Agreement of the two answers, {np.mean(shared):.0f} % on average"
    right.set(title=title, xlabel="words they share, %", ylabel="pairs")
    return {"lengths_and_types": _svg(pies), "yield_and_answers": _svg(bars)}


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tpo_jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
