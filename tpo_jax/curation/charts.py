"""Charts of a curated list: lengths and types (Figures 5 and 6 of the paper), yields, answers."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tpo_jax.curation.card import agreement
from tpo_jax.curation.units import Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Key of a stage's yield -> label and colour.
YIELDS = {
    "items": ("items", "#27ae60"),
    "dropped": ("dropped", "#bbbbbb"),
    "set aside": ("failed", "#c0392b"),
}


def charts(numbers: Mapping[str, Any], units: Sequence[Unit]) -> dict[str, str]:
    """Return SVG charts by name; equal input gives equal bytes.

    Args:
        numbers: From `card.statistics`, with `yields` per stage.
        units: The final units.
    """
    from matplotlib.figure import Figure  # takes a second, which other calls of `curate` save

    pies = Figure(figsize=(11, 4), layout="constrained")
    names = (("video lengths", "Length of the videos"), ("question types", "Types of question"))
    for axes, (name, title) in zip(pies.subplots(1, 2), names, strict=True):
        counts = {label: count for label, count in numbers[name].items() if count}
        axes.pie(
            list(counts.values()), labels=list(counts), autopct="%.1f %%", textprops={"size": 8}
        )
        axes.set_title(title)
    bars = Figure(figsize=(13, 3.6), layout="constrained")
    left, middle, right = bars.subplots(1, 3)
    yields = numbers["yields"]
    bottom = np.zeros(len(yields))
    for name, (label, colour) in YIELDS.items():
        heights = np.array([stage[name] for stage in yields.values()], float)
        left.bar(list(yields), heights, bottom=bottom, label=label, color=colour)
        bottom += heights
    left.set(title="Yield of the stages", ylabel="number")
    left.tick_params(axis="x", rotation=30)
    left.legend(fontsize=8)
    answers = ([unit.chosen for unit in units], [unit.rejected for unit in units])
    lengths = [[len(text.split()) for text in texts] for texts in answers]
    middle.hist(lengths, bins=20, label=["chosen", "rejected"], color=["#27ae60", "#888888"])
    middle.set(title="Length of the answers", xlabel="words", ylabel="pairs")
    middle.legend(fontsize=8)
    shared = [100 * agreement(unit) for unit in units]
    right.hist(shared, bins=np.linspace(0, 100, 21), color="#2980b9")
    title = f"Agreement of the two answers, {np.mean(shared):.0f} % on average"
    right.set(title=title, xlabel="words they share, %", ylabel="pairs")
    return {"lengths_and_types": _svg(pies), "yield_and_answers": _svg(bars)}


def _svg(figure: "Figure") -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tpo_jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
