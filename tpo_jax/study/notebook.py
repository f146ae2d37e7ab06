"""What the notebooks share: commands with their cost, pairs held out, pictures of pairs and runs.

`%load_ext tpo_jax.study.notebook` gives cells that begin with `%%command TITLE`.
"""

import io
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib import pyplot

from tpo_jax.data.pairs import Pair
from tpo_jax.data.pairs import read_pairs as read_list
from tpo_jax.errors import InputError
from tpo_jax.families.template import conversation_of
from tpo_jax.io.files import read_lines, write_lines
from tpo_jax.study.statistics import bootstrap
from tpo_jax.training.diagnosis import diagnose
from tpo_jax.training.run_record import load
from tpo_jax.video.sampling import read_frames

CURVES = (
    ("losses/total", "losses/dpo", "losses/sft"),
    ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    ("rewards/accuracies",),
)


def load_ipython_extension(shell: Any) -> None:
    """Register `%%command`; IPython calls this."""
    shell.register_magic_function(run_cell, "cell", "command")


def run_cell(title: str, cell: str) -> None:
    """Run a cell in bash; print what it prints, then how long it took and its largest process.

    Interrupting the cell interrupts the commands, so that `train` saves before it ends.

    Raises:
        CalledProcessError: a command failed.
        KeyboardInterrupt: it was interrupted, and the commands have ended.
    """
    start, interrupted = time.monotonic(), False
    process = subprocess.Popen(
        ["bash", "-e", "-c", cell],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    printed = cast(io.TextIOWrapper, process.stdout)
    printed.reconfigure(newline="")  # a progress bar returns to the start of its line
    while True:
        try:
            for line in printed:
                print(line, end="", flush=True)
            _, status, usage = os.wait4(process.pid, 0)
            break
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            interrupted = True
    process.returncode = os.waitstatus_to_exitcode(status)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"{title}: {minutes} min {seconds:02d} s, {usage.ru_maxrss / 1e6:.1f} GB at the peak")
    if interrupted:
        raise KeyboardInterrupt
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, title)


def read_pairs(path: str | Path, videos: str | Path) -> list[Pair]:
    """Return the pairs of a list in any format that `prepare` reads, and print what is left out.

    Args:
        videos: Folder of the videos.
    """
    valid, rejected = read_list(path, videos=Path(videos))
    one = [pair for pair in valid if not pair.rejected_video]  # its config takes no others
    there = [pair for pair in one if (Path(videos) / pair.video).is_file()]
    print(
        f"{len(there)} pairs; left out: {len(one) - len(there)} whose video is not there, "
        f"{len(valid) - len(one)} on two videos, {len(rejected)} not valid"
    )
    return there


def hold_out(pairs: Sequence[Pair], folder: str | Path, share: float = 0.1) -> None:
    """Write `train.jsonl` and `held_out.jsonl`, no video in both, and print what they hold.

    Args:
        pairs: Answers to questions on one video.
        folder: Where both files are written.
        share: Of the videos that are held out, at least one.

    Raises:
        InputError: Fewer than two videos.
    """
    videos = list(dict.fromkeys(pair.video for pair in pairs))
    if len(videos) < 2:
        raise InputError(f"pairs on {len(videos)} videos; two are needed to hold one out")
    held = set(videos[: max(1, round(share * len(videos)))])
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, wanted in (("train", set(videos) - held), ("held_out", held)):
        lines = [_record(pair) for pair in pairs if pair.video in wanted]
        write_lines(Path(folder) / f"{name}.jsonl", lines)
        print(f"{name}: {len(lines)} pairs on {len(wanted)} videos")


def _record(pair: Pair) -> dict[str, Any]:
    asked = [message._asdict() for message in conversation_of(pair.asked)]
    return {
        "id": pair.id,
        "video": pair.video,
        "video_id": pair.video_id,
        "kind": pair.kind,
        "segment": pair.segment,
        "messages": [*asked, {"role": "assistant", "content": pair.chosen}],
        "rejected_response": pair.rejected,
    }


def show_pair(pair: Pair, folder: str | Path, count: int = 8) -> None:
    """Draw frames of a pair's video, its segment framed in red, the question and both answers.

    Args:
        count: frames, evenly spaced.
    """
    frames, times, _ = read_frames(Path(folder) / pair.video, "uniform", count)
    figure, panels = pyplot.subplots(1, count, figsize=(2 * count, 2.6))
    start, end = pair.segment or (0, 0)
    for axis, frame, time_ in zip(panels, frames, times, strict=True):
        axis.imshow(frame)
        axis.set(xticks=[], yticks=[], xlabel=f"{time_:.0f} s")
        axis.spines[:].set(color="red" if start <= time_ <= end else "white", linewidth=4)
    words = f"{pair.question}\nchosen: {pair.chosen}     rejected: {pair.rejected}"
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


def show_margins(scores: Mapping[str, str | Path], pairs: Sequence[Pair]) -> None:
    """Draw how far models prefer the chosen answers; print how often, with a 95 % interval.

    Args:
        scores: Files of `score`, by the model's name.
        pairs: Those that were scored, in their order; intervals are over their videos.
    """
    margins, videos = {}, np.array([pair.video for pair in pairs])
    for name, path in scores.items():
        rows = [row for _, row in read_lines(Path(path))]
        margins[name] = np.array([row["chosen_logp"] - row["rejected_logp"] for row in rows])
        share, low, high = bootstrap(margins[name] > 0, videos)
        print(f"{name}: prefers the chosen answer to {share:.2f} [{low:.2f}, {high:.2f}] of pairs")
    pyplot.hist(list(margins.values()), bins=20, label=list(margins))
    pyplot.xlabel("log-probability of the chosen minus the rejected answer")
    pyplot.legend()
    pyplot.show()
