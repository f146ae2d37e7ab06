"""The report of a quickstart run: tables, plots and one HTML page, from the answers on disk."""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tpo_jax.io.files import read_lines, write_text
from tpo_jax.io.templates import render
from tpo_jax.study import pictures
from tpo_jax.study.cells import Table, markdown, quality_table, save_figure
from tpo_jax.study.gates import FRAMES, LOST, MASTERED, gate_table, gates
from tpo_jax.study.records import Answer, Candidate, read_rows
from tpo_jax.study.stages import Scale
from tpo_jax.study.statistics import Mean, bootstrap

CURVES = (
    ("loss", ("losses/dpo", "losses/sft")),
    ("rewards", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    ("accuracy of the preference", ("rewards/accuracies",)),
)
GATES = (
    f"A type is mastered if short videos reach {MASTERED:.2f}. Localized pairs have something to "
    f"teach if their chosen answers are right at least {100 * LOST:.0f} points more often than the "
    f"base among {' or '.join(map(str, FRAMES))} frames of the whole video."
)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over videos."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Accuracies of base and TPO on the same `n` questions, and their paired difference."""

    n: int
    base: Interval
    tpo: Interval
    gain: Interval


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report; each of its three members may be empty."""

    title: str
    text: str = ""
    table: Table = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        title = f"## {self.title}" if self.title else ""
        table = markdown(self.table) if self.table else ""
        return "\n\n".join(part for part in (title, self.text, table) if part)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The answers of both models to the same questions."""

    base: Sequence[Answer]
    tpo: Sequence[Answer]

    def compare(self, chosen: Callable[[Answer], bool]) -> Comparison:
        """Compare the models on the questions that `chosen` selects."""
        both = [
            (one, other)
            for one, other in zip(self.base, self.tpo, strict=True)
            if chosen(one) and chosen(other)
        ]
        videos = [one.video for one, _ in both]
        right = np.array([[one.right, other.right] for one, other in both], float)
        sides = (right[:, 0], right[:, 1], right[:, 1] - right[:, 0])
        return Comparison(len(both), *(Interval(*bootstrap(side, videos)) for side in sides))

    def by(self, field: str, chosen: Callable[[Answer], bool]) -> dict[Any, Comparison]:
        """Compare the models for every value of a field of `Answer`, values in order."""
        values = sorted({getattr(answer, field) for answer in self.base if chosen(answer)})

        def with_value(value: Any) -> Callable[[Answer], bool]:
            return lambda answer: chosen(answer) and getattr(answer, field) == value

        return {value: self.compare(with_value(value)) for value in values}


def comparison_table(label: str, groups: Mapping[Any, Comparison]) -> Table:
    """Return one line per group: questions, base, TPO and gain with its interval."""
    lines = [[label, "questions", "base", "TPO", "gain [95 %]"]]
    for name, found in groups.items():
        accuracies = (f"{side.mean:.3f}" for side in (found.base, found.tpo))
        lines.append([str(name), str(found.n), *accuracies, str(found.gain)])
    return lines


def _plot(title: str, x_label: str, groups: Mapping[Any, Comparison], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(groups))
    for name, shift, colour in (("base", -0.08, "#888888"), ("TPO", 0.08, "#c0392b")):
        sides = [found.base if name == "base" else found.tpo for found in groups.values()]
        middle = np.array([side.mean for side in sides])
        below = middle - np.array([side.low for side in sides])
        above = np.array([side.high for side in sides]) - middle
        axes.errorbar(
            at + shift, middle, (below, above), fmt="o-", capsize=3, color=colour, label=name
        )
    axes.set_xticks(at, [str(name) for name in groups], rotation=30 if len(groups) > 5 else 0)
    axes.set(title=title, xlabel=x_label, ylabel="accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _plot_training(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, 3), CURVES, strict=True):
        for name in names:
            axes.plot([m["step"] for m in metrics], [m[name] for m in metrics], label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save_figure(figure, path)


def write(workdir: Path, seed: int, scale: Scale, seconds: Mapping[str, float]) -> Path:
    """Write `report.md`, `report.html` and their plots; print the tables on standard output.

    Args:
        workdir: holds `base_answers.json`, `tpo_answers.json`, `answers.json`,
            `pairs.jsonl` and `tpo/metrics.jsonl`.
        seconds: per stage.

    Returns:
        Path of the HTML page.
    """
    outcome = Outcome(
        *(read_rows(workdir / f"{name}_answers.json", Answer) for name in ("base", "tpo"))
    )
    made = read_rows(workdir / "answers.json", Candidate)
    kept = {pair["id"] for _, pair in read_lines(workdir / "pairs.jsonl")}
    longest = max(answer.seconds for answer in outcome.base)

    def seen(frames: int) -> Callable[[Answer], bool]:
        return lambda answer: answer.seconds == longest and answer.frames == frames

    def spaced(answer: Answer) -> bool:
        return answer.frames > 0 and answer.seconds == 3 * answer.frames

    by_frames = outcome.by("frames", lambda answer: answer.seconds == longest)
    blind = by_frames.pop(0)  # shown another video
    by_length = {f"{s} s": found for s, found in outcome.by("seconds", spaced).items()}
    by_type = outcome.by("type", seen(32))
    quality = quality_table(made, [row.id in kept for row in made])
    sizes = json.dumps(dataclasses.asdict(scale))
    times = [[name, str(value)] for name, value in seconds.items()]
    sections = [
        Section("", _verdict(outcome.compare(seen(32)), longest)),
        Section("Frames seen", table=comparison_table("frames", by_frames)),
        Section(
            "Length of the video, one frame in three seconds",
            table=comparison_table("length", by_length),
        ),
        Section("Type of question, 32 frames", table=comparison_table("type", by_type)),
        Section(
            "Asked with another video",
            f"All types: base {blind.base.mean:.3f}, TPO {blind.tpo.mean:.3f}.",
            comparison_table("type", outcome.by("type", seen(0))),
        ),
        Section("Self-generated pairs", f"{len(kept)} of {len(made)} kept.", quality),
        Section("What the base must show", GATES, gate_table(gates(outcome.base, made))),
        Section(
            "This run",
            f"seed {seed}, sizes {sizes}",
            [["stage", "seconds"], *times, ["all", f"{sum(seconds.values()):.0f}"]],
        ),
    ]
    text = "\n\n".join(["# Quickstart", *map(str, sections)])
    write_text(workdir / "report.md", text + "\n")
    both = {name: _sides(found) for name, found in by_frames.items()}
    lines = {side: [of[side] for of in both.values()] for side in ("base", "tpo")}
    pictures.by_frames([*both], lines, workdir / "frames.png")
    _plot("Accuracy by length of the video", "length", by_length, workdir / "lengths.png")
    sides = {name: _sides(found) for name, found in by_type.items()}
    pictures.by_type(sides, workdir / "types.png", "videos")
    metrics = [record for _, record in read_lines(workdir / "tpo/metrics.jsonl")]
    _plot_training(metrics, workdir / "training.png")
    page = workdir / "report.html"
    drawn = _pictures(workdir / f"{n}.png" for n in ("frames", "lengths", "types", "training"))
    write_text(
        page, render("tpo_jax.study", "report.html.jinja", sections=sections, pictures=drawn)
    )
    print(text)
    return page


def _sides(found: Comparison) -> dict[str, Mean]:
    """Return the accuracies of both models as the pictures take them."""
    sides = {"base": found.base, "tpo": found.tpo}
    return {name: Mean(found.n, side.mean, side.low, side.high) for name, side in sides.items()}


def _verdict(found: Comparison, seconds: int) -> str:
    """Say whether TPO beats its base."""
    gain = found.gain
    return (
        f"TPO {'beats' if gain.low > 0 else 'does not beat'} its base on held-out {seconds}-second "
        f"videos at 32 frames: {found.base.mean:.3f} to {found.tpo.mean:.3f}, gain "
        f"{gain.mean:+.3f}, 95 % interval [{gain.low:+.3f}, {gain.high:+.3f}] over videos."
    )


def _pictures(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Return names and contents of PNG files for the page."""
    return [
        {"name": path.stem, "base64": base64.b64encode(path.read_bytes()).decode()}
        for path in paths
    ]
