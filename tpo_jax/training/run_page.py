"""The run report: warnings, curves, where the time went, in one file that needs no other."""

import io
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tpo_jax.io.files import replacing
from tpo_jax.io.templates import render
from tpo_jax.training.diagnosis import RULES, diagnose
from tpo_jax.training.run_record import Run, load

NAME = "report.html"
BINS = 400  # points of a curve at most
HELD_OUT = "eval/"  # the same metric over held-out pairs
PANELS = (
    ("loss", ("losses/total", "losses/dpo", "losses/sft")),
    ("margin", ("rewards/margins",)),
    ("accuracy of the preference", ("rewards/accuracies",)),
    ("loss between two videos", ("video/losses/dpo", "video/losses/anchor")),
    ("margin between two videos", ("video/rewards/margins",)),
    ("accuracy between two videos", ("video/rewards/accuracies",)),
    ("log-probability of an answer", ("logps/chosen", "logps/rejected")),
    ("reward", ("rewards/chosen", "rewards/rejected")),
    ("KL estimate, nats per answer", ("kl/chosen", "kl/rejected")),
    ("labelled tokens", ("lengths/chosen", "lengths/rejected")),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
    ("pairs per second", ("pairs/s",)),
    ("share of time", ("time/step", "time/input_wait", "time/compile", "time/checkpoint")),
    ("goodput", ("time/goodput",)),
)
WITHOUT_EVAL = ("lengths/chosen", "lengths/rejected")  # the same at every evaluation
COLOURS = {"chosen": "#27ae60", "rejected": "#888888"}
OTHERS = ("#2563a8", "#c0392b", "#d68910", "#7d3c98")
PARTS = {  # of the account: title, colour
    "step": ("steps that count", "#27ae60"),
    "lost": ("steps lost in restarts", "#c0392b"),
    "input_wait": ("waiting for batches", "#d68910"),
    "compile": ("compiling", "#2563a8"),
    "checkpoint": ("saving", "#7d3c98"),
    "eval": ("evaluating held-out pairs", "#16a085"),
    "startup": ("starting up, reference included", "#5d6d7e"),
    "other": ("other", "#bbbbbb"),
    "down": ("between starts", "#eeeeee"),
}


class TimeShare(NamedTuple):
    """A part of the bar of time."""

    title: str
    colour: str
    seconds: float
    percent: float  # of the wall time


def write(workdir: Path) -> Path:
    """Write `report.html` into a working directory of `train`; the run may be in progress.

    Returns:
        Path of the page.

    Raises:
        InputError: The directory is not one of `train`, or has no record yet.
    """
    run = load(workdir)
    path = workdir / NAME
    with replacing(path, "wb") as file:
        file.write(page(workdir.absolute().name, run).encode(errors="replace"))
    return path


def page(name: str, run: Run) -> str:
    """Return the HTML page of a run that is called `name`."""
    account = run.account
    parts = [
        TimeShare(title, colour, seconds, 100 * seconds / account.wall)
        for part, (title, colour) in PARTS.items()
        if (seconds := account.seconds[part]) > 0
    ]
    config = "\n".join(
        f"{section}.{name} = {value!r}"
        for section, fields in run.config.items()
        for name, value in fields.items()
    )
    model = run.field("model.checkpoint") or run.field("model.preset")
    return render(
        "tpo_jax.training",
        "run_page.html.jinja",
        name=name,
        run=run,
        model=Path(str(model)).name,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        findings=diagnose(run),
        rules=len(RULES),
        parts=parts,
        duration=_duration,
        curves=curves(run),
        config=config,
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _binned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means of neighbours, at most `BINS` points; NaN are left out."""
    there = np.isfinite(values)
    bins = np.array_split(np.arange(there.sum()), min(BINS, max(there.sum(), 1)))
    steps, values = steps[there], values[there]
    means = [(steps[b].mean(), values[b].mean()) for b in bins if len(b)]
    x, y = zip(*means, strict=True) if means else ((), ())
    return np.array(x), np.array(y)


def curves(run: Run) -> str:
    """Return the metrics over the steps as one SVG picture, empty if the run has none of `PANELS`.

    Metrics over held-out pairs are dashed, in the panel and the colour of the training metric.
    Equal runs give equal bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [
        (title, found)
        for title, names in PANELS
        if (found := [name for name in names if name in run.series])
    ]
    if not panels:
        return ""
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 2.6 * rows))
    # Computing the layout (`tight`, `constrained`) would take as long as drawing the picture.
    margin = 0.3 / (2.6 * rows)
    figure.subplots_adjust(0.05, margin, 0.99, 1 - margin, wspace=0.22, hspace=0.3)
    places = figure.subplots(rows, 3, squeeze=False).flat
    for axes, (title, names) in zip(places, panels, strict=False):
        for name, other in zip(names, OTHERS, strict=False):
            side = name.rpartition("/")[2]
            colour, label = COLOURS.get(side, other), side.replace("_", " ")
            _draw(axes, run.steps, run.series[name], color=colour, label=label)
            held_out = run.series.get(HELD_OUT + name)
            if held_out is not None and name not in WITHOUT_EVAL:
                look = {"linestyle": "--", "marker": "o", "markersize": 2.5}
                _draw(axes, run.steps, held_out, color=colour, label=f"{label}, held out", **look)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=7)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    out = io.StringIO()
    # Text stays text: the file is a third of the size and can be searched.
    with mpl.rc_context({"svg.hashsalt": "tpo_jax", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)


def _draw(axes: Any, steps: np.ndarray, values: np.ndarray, **look: Any) -> None:
    steps, values = _binned(steps, values)
    axes.plot(steps, values, **{"linewidth": 1.2, "marker": "." if len(steps) < 2 else ""} | look)
