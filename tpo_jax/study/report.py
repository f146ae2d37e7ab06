"""The report of a quickstart run: tables, plots and one HTML page, from the answers on disk."""

import base64
import html
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tpo_jax.io.files import read_json
from tpo_jax.study.scoring import bootstrap

Rows = list[dict[str, Any]]


def quality_table(quality: Rows) -> str:
    """How good the self-generated pairs are, per type: a Markdown table.

    Args:
        quality: one entry per query with `type`, `kind`, `chosen_right`, `rejected_right`, `kept`.
    """
    lines = [
        "| type | kind | queries | chosen right | rejected right | kept |",
        "|---|---|---|---|---|---|",
    ]
    groups = defaultdict(list)
    for row in quality:
        groups[row["type"], row["kind"]].append(row)
    for (name, kind), rows in sorted(groups.items()):
        shares = (
            f"{np.mean([row[k] for row in rows]):.2f}"
            for k in ("chosen_right", "rejected_right", "kept")
        )
        lines.append(f"| {name} | {kind} | {len(rows)} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def compare(base: Rows, tuned: Rows) -> dict[str, float]:
    """Accuracies of two models on the same questions, and their paired difference.

    Returns:
        `n`, and for `base`, `tpo` and `gain` the mean with its 95 % interval over videos
        (`base`, `base_low`, `base_high`, …).
    """
    videos = [row["video"] for row in base]
    right = np.array([[a["right"], b["right"]] for a, b in zip(base, tuned, strict=True)], float)
    result: dict[str, float] = {"n": len(base)}
    for name, values in (
        ("base", right[:, 0]),
        ("tpo", right[:, 1]),
        ("gain", right[:, 1] - right[:, 0]),
    ):
        mean, low, high = bootstrap(values, videos)
        result |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return result


def comparison_table(label: str, groups: dict[str, dict[str, float]]) -> str:
    """One line per group: base, TPO and gain with intervals, as a Markdown table."""
    lines = [f"| {label} | questions | base | TPO | gain [95 %] |", "|---|---|---|---|---|"]
    for name, g in groups.items():
        lines.append(
            f"| {name} | {g['n']} | {g['base']:.3f} | {g['tpo']:.3f} | "
            f"{g['gain']:+.3f} [{g['gain_low']:+.3f}, {g['gain_high']:+.3f}] |"
        )
    return "\n".join(lines)


def _select(rows: Rows, **values) -> Rows:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _plot(title: str, x_label: str, groups: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(groups))
    for name, shift, colour in (("base", -0.08, "#888888"), ("tpo", 0.08, "#c0392b")):
        middle = np.array([g[name] for g in groups.values()])
        low = np.array([g[f"{name}_low"] for g in groups.values()])
        high = np.array([g[f"{name}_high"] for g in groups.values()])
        axes.errorbar(
            at + shift, middle, (middle - low, high - middle), fmt="o-", capsize=3, color=colour,
            label={"base": "base", "tpo": "TPO"}[name],
        )  # fmt: skip
    axes.set_xticks(at, list(groups), rotation=30 if len(groups) > 5 else 0)
    axes.set(title=title, xlabel=x_label, ylabel="accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _plot_training(metrics: Rows, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = (
        ("loss", ("losses/dpo", "losses/sft")),
        ("rewards", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
        ("accuracy of the preference", ("rewards/accuracies",)),
    )
    for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            axes.plot([m["step"] for m in metrics], [m[name] for m in metrics], label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def write(workdir: Path, *, seed: int, scale: dict, seconds: dict[str, float]) -> Path:
    """Writes `report.md`, `report.html` and their plots; prints the tables on standard output.

    Args:
        workdir: holds `base_answers.json`, `tpo_answers.json`, `quality.json` and
            `tpo/metrics.jsonl`; the first two have one entry per question with `video`, `seconds`,
            `frames` (0: asked with another video), `type`, `kind`, `right`.
        seed: of the run.
        scale: its sizes.
        seconds: time per stage.

    Returns:
        Path of the HTML page.
    """
    base, tuned = (read_json(workdir / f"{name}_answers.json") for name in ("base", "tpo"))
    longest = max(row["seconds"] for row in base)
    main = {"seconds": longest, "frames": 32}

    def groups(key: str, **fixed) -> dict[str, dict[str, float]]:
        values = sorted({row[key] for row in _select(base, **fixed)})
        return {
            str(value): compare(
                _select(base, **fixed, **{key: value}), _select(tuned, **fixed, **{key: value})
            )
            for value in values
        }

    overall = compare(_select(base, **main), _select(tuned, **main))
    by_frames = groups("frames", seconds=longest)
    blind = by_frames.pop("0")
    spaced = [r for r in base if r["frames"] and r["seconds"] == 3 * r["frames"]]
    lengths = sorted({row["seconds"] for row in spaced})
    by_length = {
        f"{s} s": compare(
            _select(base, seconds=s, frames=s // 3), _select(tuned, seconds=s, frames=s // 3)
        )
        for s in lengths
    }
    by_type = groups("type", **main)
    blind_by_type = groups("type", seconds=longest, frames=0)
    quality = read_json(workdir / "quality.json")
    metrics = [
        json.loads(line) for line in (workdir / "tpo/metrics.jsonl").read_text().split("\n") if line
    ]

    gained = overall["gain_low"] > 0
    verdict = (
        f"TPO {'beats' if gained else 'does not beat'} its base on held-out {longest}-second "
        f"videos at 32 frames: {overall['base']:.3f} to {overall['tpo']:.3f}, gain "
        f"{overall['gain']:+.3f}, "
        f"95 % interval [{overall['gain_low']:+.3f}, {overall['gain_high']:+.3f}] over videos."
    )
    kept = sum(row["kept"] for row in quality)
    sections = [
        ("", verdict),
        ("Frames seen", comparison_table("frames", by_frames)),
        ("Length of the video, one frame in three seconds", comparison_table("length", by_length)),
        ("Type of question, 32 frames", comparison_table("type", by_type)),
        (
            "Asked with another video",
            f"All types: base {blind['base']:.3f}, TPO {blind['tpo']:.3f}.\n\n"
            + comparison_table("type", blind_by_type),
        ),
        (
            "Self-generated pairs",
            f"{kept} of {len(quality)} kept.\n\n" + quality_table(quality),
        ),
        (
            "This run",
            f"seed {seed}, sizes {json.dumps(scale)}\n\n| stage | seconds |\n|---|---|\n"
            + "\n".join(f"| {name} | {value} |" for name, value in seconds.items())
            + f"\n| all | {sum(seconds.values()):.0f} |",
        ),
    ]
    text = "# Quickstart\n\n" + "\n\n".join(
        (f"## {title}\n\n" if title else "") + body for title, body in sections
    )
    (workdir / "report.md").write_text(text + "\n")
    plots = {
        "frames.png": ("Accuracy by frames seen", "frames", by_frames),
        "lengths.png": ("Accuracy by length of the video", "length", by_length),
        "types.png": ("Accuracy by type, 32 frames", "", by_type),
    }
    for name, (title, x_label, values) in plots.items():
        _plot(title, x_label, values, workdir / name)
    _plot_training(metrics, workdir / "training.png")
    page = workdir / "report.html"
    page.write_text(_html(sections, [workdir / name for name in (*plots, "training.png")]))
    print(text)
    return page


def _html(sections: list[tuple[str, str]], pictures: list[Path]) -> str:
    """One self-contained page."""
    out = io.StringIO()
    out.write(
        "<!doctype html><meta charset=utf-8><title>tpo_jax quickstart</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;margin:1rem 0}"
        "td,th{border:1px solid #ccc;padding:.2rem .6rem}"
        "img{max-width:100%}</style><h1>tpo_jax quickstart</h1>"
    )
    for index, (title, body) in enumerate(sections):
        if title:
            out.write(f"<h2>{html.escape(title)}</h2>")
        for block in body.split("\n\n"):
            lines = block.split("\n")
            if not lines[0].startswith("|"):
                out.write(f"<p>{html.escape(block)}</p>")
                continue
            out.write("<table>")
            for line in (lines[0], *lines[2:]):
                cell = "th" if line is lines[0] else "td"
                cells = (html.escape(c.strip()) for c in line.strip("|").split("|"))
                out.write("<tr>" + "".join(f"<{cell}>{c}</{cell}>" for c in cells) + "</tr>")
            out.write("</table>")
        if index == 0:
            for path in pictures:
                data = base64.b64encode(path.read_bytes()).decode()
                out.write(f'<img alt="{path.stem}" src="data:image/png;base64,{data}">')
    return out.getvalue()
