"""Kill a training run many times and compare it with an uninterrupted one.

    python benchmarks/torture.py [--kills=20] [--seed=0] [--output=docs/results/kills.md]

A tiny model trains on rendered videos, a checkpoint every second step. Each start is killed at a
random moment, by SIGTERM or SIGKILL: after some steps, while a checkpoint is being written, or
anywhere between the start of Python and the first step; the number of decoding workers changes
between starts. Parameters, optimizer, metrics and the pairs of every batch must then be those of
the uninterrupted run, bit for bit. A second run changes its devices and processes: the same pairs,
numbers to rounding. Prints Markdown and fails if something differs.
"""

import itertools
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.torture_run import BATCH, Kill, Run, kill_once, wait_for
from tpo_jax.data import preparation
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

ROOT = Path(__file__).resolve().parents[1]
FRAMES, STEPS_PER_KILL = 8, 3


def make_world(root: Path) -> list[str]:
    """Make shards and a tokenizer in `root`; return the flags of a run on them."""
    videos = make_videos(root / "videos", seed=5, seconds=[40] * 6, workers=1)
    asked = [(Path(v.path).name, q) for v in videos for q in v.questions[:4]]
    texts = [text for _, q in asked for text in (q.text, q.answer)]
    save_tokenizer(train_tokenizer(texts, vocab_size=400), root / "tokenizer")
    pairs = [
        {"video": name, "prompt": q.text, "chosen": q.answer, "rejected": f"Not {q.answer}"}
        for name, q in asked
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = preparation.Settings(num_frames=FRAMES)
    preparation.prepare(root / "pairs.jsonl", root / "videos", root / "shards", settings)
    fields = {
        "model.preset": "tiny_longva",
        "model.tokenizer": root / "tokenizer",
        "data.shards": root / "shards",
        "data.num_frames": FRAMES,
        "data.pairs_per_row": 1,
        "train.batch_size": BATCH,
        "train.log_every": 1,
        "train.checkpoint_every": 2,
    }
    flags_given = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config={ROOT / 'configs/tiny.py'}", *flags_given]


def torture(run: Run, kills: int, seed: int, startup: float) -> Iterator[Kill]:
    """Kill the run so many times, then let it finish."""
    rng = random.Random(seed)
    moments = itertools.cycle(("in a save", "after steps", "in a save", "at the start"))
    signals = ["KILL", "TERM"] * (kills // 2 + 1)
    rng.shuffle(signals)
    for when, kind, _ in zip(moments, signals, range(kills), strict=False):
        window = {"in a save": 0.02, "after steps": 0.3, "at the start": startup}[when]
        drawn = {"workers": rng.choice((0, 0, 1)), "more": rng.randint(0, STEPS_PER_KILL - 1)}
        yield kill_once(run, when, kind, delay=rng.uniform(0, window), **drawn)
    run.finish()


def differences(run: Run, reference: Run, steps: int) -> list[str]:
    """Return what is not equal to the bit; empty if everything is."""
    found = []
    if run.records() != reference.records():
        found.append("metrics")
    if [record["step"] for record in run.records()] != list(range(1, steps + 1)):
        found.append("steps of the metrics")
    a, b = run.state(steps), reference.state(steps)
    if jax.tree.structure(a) != jax.tree.structure(b):
        return [*found, "structure of the state"]
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        if x.dtype != y.dtype or x.tobytes() != y.tobytes():
            found.append(jax.tree_util.keystr(path))
    return found + pair_differences(run, reference, steps)


def pair_differences(run: Run, reference: Run, steps: int) -> list[str]:
    """Return the batches whose pairs are not those of the reference."""
    ours, theirs = run.pairs(), reference.pairs()
    return [f"pairs of batch {k}" for k in range(steps) if ours.get(k) != theirs[k]]


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def elastic(run: Run, steps: int) -> list[str]:
    """Change devices and processes twice; return what it ran on."""

    def stop(processes: list[subprocess.Popen], at: int) -> None:
        wait_for(lambda: len(run.records()) >= at, processes[0], 600)
        processes[-1].terminate()  # one is told, all stop
        if codes := [p.wait(600) for p in processes if p.wait(600)]:
            raise SystemExit(f"exit codes {codes}:\n{run.log[-2000:]}")

    stop([run.start()], steps // 4)
    port = free_port()
    pair = [
        run.start(f"--distributed=127.0.0.1:{port},2,{i}", "--config.data.workers=0", devices=2)
        for i in (0, 1)
    ]
    stop(pair, steps // 2)
    run.finish("--config.data.workers=1", devices=1)
    return ["2 devices", "2 processes of 2 devices", "1 device"]


def distance(run: Run, reference: Run, steps: int) -> tuple[float, float]:
    """Return largest difference of a loss, and of the parameters by norm, relative."""
    losses = [
        abs(a["losses/total"] - b["losses/total"])
        for a, b in zip(run.records(), reference.records(), strict=True)
    ]
    a, b = (
        np.concatenate([x.ravel() for x in jax.tree.leaves(r.state(steps)["params"])])
        for r in (run, reference)
    )
    return max(losses), float(np.linalg.norm(a - b) / np.linalg.norm(b))


TEXT = """# Kills, measured

Written by `{command}`:
`tiny_longva`, {frames} frames, batches of {batch}, {steps} steps, a checkpoint every second one, on
{cores} {machine} cores shared with other programs. {total} kills in {minutes:.0f} minutes;
the first step of a start came after about {startup:.0f} s.

| moment | SIGTERM | SIGKILL | with a checkpoint unfinished |
| --- | --- | --- | --- |
{rows}

| compared with the uninterrupted run | |
| --- | --- |
| parameters, moments of the optimizer, step | {state} |
| `metrics.jsonl`: every step once, all values but times | {metrics} |
| pairs of every batch, also of repeated ones | {pairs} |

Decoding workers were drawn for every start: {workers}. SIGTERM during
training: the process had saved and exited with 0 after at most {grace:.1f} s.

On other devices in between ({places}):
{elastic}.
Sums over devices are then in another order, and numbers agree to rounding: losses differ by
at most {loss:.1e}, parameters by {params:.1e} of their norm after {elastic_steps} steps.
"""


def report(kills: list[Kill], different: list[str], **values) -> str:
    """Return the table in Markdown."""
    rows = []
    for moment in dict.fromkeys(kill.when for kill in kills):
        some = [kill for kill in kills if kill.when == moment]
        counts = [sum(kill.signal == kind for kill in some) for kind in ("TERM", "KILL")]
        left = sum(kill.unfinished for kill in some)
        rows.append(f"| {moment} | {counts[0]} | {counts[1]} | {left} |")

    def verdict(*names: str) -> str:
        bad = [d for d in different if d.startswith(names)]
        return f"different: {', '.join(bad[:3])}" if bad else "equal, bit for bit"

    graceful = [kill.seconds for kill in kills if kill.signal == "TERM" and kill.code == 0]
    return TEXT.format(
        rows="\n".join(rows),
        total=len(kills),
        state=verdict("[", "structure"),
        metrics=verdict("metrics", "steps"),
        pairs=verdict("pairs"),
        elastic=verdict("elastic").replace(
            "equal, bit for bit", "the same pairs in the same order"
        ),
        workers=", ".join(f"{w}: {sum(k.workers == w for k in kills)} starts" for w in (0, 1)),
        grace=max(graceful, default=0.0),
        frames=FRAMES,
        batch=BATCH,
        cores=os.cpu_count(),
        machine=platform.machine(),
        **values,
    )


def main(_) -> None:
    """Run, compare and print."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells its whole story otherwise
    jax.config.update("jax_num_cpu_devices", 2)  # to read what two devices have saved
    kills, began = [], time.monotonic()
    steps, elastic_steps = STEPS_PER_KILL * KILLS.value, 16
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        world, cache = make_world(root), root / "compiled"

        def new(name: str, count: int) -> Run:
            return Run(root / name, [*world, f"--config.train.num_steps={count}"], cache)

        whole = new("whole", steps)
        whole.finish()
        started = time.monotonic()
        process = new("startup", steps).start()  # with everything compiled
        wait_for((root / "startup" / "metrics.jsonl").exists, process, 600)
        startup = time.monotonic() - started
        process.kill()
        process.wait()
        apart, together = new("elastic", elastic_steps), new("fixed", elastic_steps)
        together.finish()
        places = elastic(apart, elastic_steps)
        different = [f"elastic: {d}" for d in pair_differences(apart, together, elastic_steps)]
        loss, params = distance(apart, together, elastic_steps)
        run = new("killed", steps)
        for kill in torture(run, KILLS.value, SEED.value, startup):
            kills.append(kill)
            print(f"{len(kills)}/{KILLS.value} {kill}", file=sys.stderr, flush=True)
        different += differences(run, whole, steps)
    text = report(
        kills,
        different,
        command=f"python benchmarks/torture.py --kills={KILLS.value} --seed={SEED.value} "
        "--output=docs/results/kills.md",
        steps=steps,
        minutes=(time.monotonic() - began) / 60,
        startup=startup,
        places=", ".join(places),
        loss=loss,
        params=params,
        elastic_steps=elastic_steps,
    )
    print(text, end="")
    if different:
        raise SystemExit(f"different: {', '.join(different)}")
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    KILLS = flags.DEFINE_integer("kills", 20, "How many.", lower_bound=4)
    SEED = flags.DEFINE_integer("seed", 0, "Of moments, signals and workers.")
    OUTPUT = flags.DEFINE_string("output", None, "File for the tables.")
    app.run(main)
