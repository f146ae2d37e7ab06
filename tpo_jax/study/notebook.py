"""What the notebooks show: a pair with its frames, the curves and the findings of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from tpo_jax.training.diagnosis import diagnose
from tpo_jax.training.run_record import load
from tpo_jax.video.sampling import read_frames

CURVES = (
    ("losses/total", "losses/dpo", "losses/sft"),
    ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    ("rewards/accuracies",),
)


def read_pairs(path: str | Path) -> list[dict[str, Any]]:
    """Read the pairs of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def show_pair(pair: Mapping[str, Any], folder: str | Path, count: int = 8) -> None:
    """Draw frames of a pair's video, its segment framed in red, the question and both answers.

    Args:
        count: frames, evenly spaced.
    """
    frames, times, _ = read_frames(Path(folder) / pair["video"], "uniform", count)
    figure, panels = pyplot.subplots(1, count, figsize=(2 * count, 2.6))
    start, end = pair.get("segment") or (0, 0)
    for axis, frame, time in zip(panels, frames, times, strict=True):
        axis.imshow(frame)
        axis.set(xticks=[], yticks=[], xlabel=f"{time:.0f} s")
        axis.spines[:].set(color="red" if start <= time <= end else "white", linewidth=4)
    words = f"{pair['prompt']}\nchosen: {pair['chosen']}     rejected: {pair['rejected']}"
    figure.suptitle(words, y=1.1)
    pyplot.show()


def show_run(workdir: str | Path) -> None:
    """Draw losses, rewards and accuracy of a run of `train`; print what its report warns of."""
    run = load(Path(workdir))
    _, panels = pyplot.subplots(1, len(CURVES), figsize=(14, 3))
    for axis, names in zip(panels, CURVES, strict=True):
        for name in names:
            axis.plot(run.steps, run.series[name], label=name)
        axis.set_xlabel("step")
        axis.legend()
    pyplot.show()
    for finding in diagnose(run):
        print(f"{finding.title}: {finding.evidence}. Try to {finding.advice}.")
