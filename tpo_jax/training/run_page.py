"""The page about a run: warnings, curves, where the time went. One file that needs no other."""

import html
import io
import re
import time
from pathlib import Path

import numpy as np

from tpo_jax.io.files import replacing
from tpo_jax.training.diagnosis import RULES, Finding, diagnose
from tpo_jax.training.run_record import Run, load

NAME = "report.html"
BINS = 400  # points of a curve at most
PANELS = (
    ("loss", ("losses/total", "losses/dpo", "losses/sft")),
    ("margin", ("rewards/margins",)),
    ("accuracy of the preference", ("rewards/accuracies",)),
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
COLOURS = {"chosen": "#27ae60", "rejected": "#888888"}
OTHERS = ("#2563a8", "#c0392b", "#d68910", "#7d3c98")
PARTS = {  # of the account: what it is, colour
    "step": ("steps that count", "#27ae60"),
    "lost": ("steps lost in restarts", "#c0392b"),
    "input_wait": ("waiting for batches", "#d68910"),
    "compile": ("compiling", "#2563a8"),
    "checkpoint": ("saving", "#7d3c98"),
    "startup": ("starting up, reference included", "#5d6d7e"),
    "other": ("other", "#bbbbbb"),
    "down": ("between starts", "#eeeeee"),
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; color: #222;
       padding: 0 1em }
svg { max-width: 100%; height: auto }
article { border-left: 4px solid #c0392b; padding: 0 0 0 .8em; margin: .8em 0 }
article.fine { border-color: #27ae60 }
article h3, article p { margin: 0 }
.bar { display: flex; height: 1.6em; border: 1px solid #ccc }
.bar i { display: block }
.key i { display: inline-block; width: .9em; height: .9em; margin-right: .4em }
.key span { margin-right: 1.2em; white-space: nowrap }
small { color: #666 }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
"""


def write(workdir: Path) -> Path:
    """Writes `report.html` into a working directory of `train`, whose run may be going on.

    Returns:
        Path of the page.

    Raises:
        InputError: it is no such directory, or has no record yet.
    """
    run = load(workdir)
    path = workdir / NAME
    with replacing(path, "wb") as file:
        file.write(page(workdir.absolute().name, run).encode(errors="replace"))
    return path


def page(name: str, run: Run) -> str:
    """HTML of a run that is called `name`."""
    first, last = run.steps[0], run.steps[-1]
    title = html.escape(f"Run {name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f"<p>{len(run.steps)} records, steps {first} to {last} · {html.escape(_settings(run))}<br>"
        f"<small>written {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}</small></p>\n"
        f"<h2>Warnings</h2>\n{_warnings(diagnose(run))}\n"
        f"<h2>Where the time went</h2>\n{_time(run)}\n"
        f"<h2>Curves</h2>\n{curves(run)}\n"
        f"<details><summary>config.json</summary><pre>{_config(run)}</pre></details>\n"
        "</body></html>\n"
    )


def _settings(run: Run) -> str:
    model = run.field("model.checkpoint") or run.field("model.preset")
    return (
        f"{Path(str(model)).name} · {run.field('objective.loss')}, β "
        f"{run.field('objective.beta')}, α {run.field('objective.alpha')} · "
        f"{run.field('train.batch_size')} pairs a step · learning rate "
        f"{run.field('train.learning_rate')}"
    )


def _config(run: Run) -> str:
    return html.escape(
        "\n".join(
            f"{section}.{name} = {value!r}"
            for section, fields in run.config.items()
            for name, value in fields.items()
        )
    )


def _warnings(findings: list[Finding]) -> str:
    if not findings:
        return f'<article class="fine"><p>None of {len(RULES)} rules warns.</p></article>'
    return "\n".join(
        f"<article><h3>{html.escape(f.title)}</h3><p>{html.escape(f.evidence)}.<br>"
        f"<small>{html.escape(f.advice)}.</small></p></article>"
        for f in findings
    )


def _time(run: Run) -> str:
    account = run.account
    if not account.wall:
        return "<p>This run has no journal of its time.</p>"
    parts = {name: account.seconds[name] for name in PARTS if account.seconds[name] > 0}
    bar = "".join(
        f'<i style="width:{100 * value / account.wall:.2f}%;background:{PARTS[name][1]}" '
        f'title="{PARTS[name][0]}"></i>'
        for name, value in parts.items()
    )
    key = " ".join(
        f'<span><i style="background:{PARTS[name][1]}"></i>{PARTS[name][0]} {_duration(value)}, '
        f"{100 * value / account.wall:.1f} %</span>"
        for name, value in parts.items()
    )
    return (
        f"<p>Goodput {100 * account.goodput:.1f} % of {_duration(account.wall)} since the first "
        f"start, {account.starts} start{'s' if account.starts > 1 else ''}.</p>"
        f'<div class="bar">{bar}</div><p class="key">{key}</p>'
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _binned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that at most `BINS` points are left; NaN are left out."""
    there = np.isfinite(values)
    bins = np.array_split(np.arange(there.sum()), min(BINS, max(there.sum(), 1)))
    steps, values = steps[there], values[there]
    means = [(steps[b].mean(), values[b].mean()) for b in bins if len(b)]
    x, y = zip(*means, strict=True) if means else ((), ())
    return np.array(x), np.array(y)


def curves(run: Run) -> str:
    """The metrics over the steps as one SVG picture; equal input, equal bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [
        (title, found)
        for title, names in PANELS
        if (found := [name for name in names if name in run.series])
    ]
    if not panels:
        return "<p>There is no metric of those that are shown.</p>"
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    places = figure.subplots(rows, 3, squeeze=False).flat
    for axes, (title, names) in zip(places, panels, strict=False):
        for name, other in zip(names, OTHERS, strict=False):
            side = name.rpartition("/")[2]
            steps, values = _binned(run.steps, run.series[name])
            look = {"color": COLOURS.get(side, other), "marker": "." if len(steps) < 2 else ""}
            axes.plot(steps, values, label=side.replace("_", " "), linewidth=1.2, **look)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=7)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    out = io.StringIO()
    # Text stays text: the file is a third of the size and can be searched.
    with mpl.rc_context({"svg.hashsalt": "tpo_jax", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
