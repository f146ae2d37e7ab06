"""Does the input keep up? Pairs/s of the pipeline next to pairs/s of the step it feeds.

    python benchmarks/input.py [--media=../shared/media --tokenizer=../shared/qwen2_tokenizer]
        [--output=FILE.md]

The tiny model on rendered videos, 32 frames: the pipeline alone, the step alone on one batch, and
the two together, in one run. Then the pipeline alone at the size of the 7B models, on real clips.
Prints Markdown tables.
"""

import dataclasses
import itertools
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tpo_jax import families
from tpo_jax.data import preparation
from tpo_jax.data.config import DataConfig
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import to_global
from tpo_jax.study.rows import tiny
from tpo_jax.training import experiment
from tpo_jax.training.state import learning_rate_schedule, make_optimizer, new_state
from tpo_jax.training.step import make_step
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

SHARED = Path(__file__).resolve().parents[2] / "shared"
MEDIA = flags.DEFINE_string("media", str(SHARED / "media"), "Folder with real clips.")
TOKENIZER = flags.DEFINE_string("tokenizer", str(SHARED / "qwen2_tokenizer"), "Qwen2's.")
OUTPUT = flags.DEFINE_string("output", None, "File for the tables, besides standard output.")

FRAMES, VIDEOS, SECONDS = 32, 48, 96
ENDLESS = {"num_epochs": 0, "seed": 0, "answers": 2, "phrases": False}
PAPER = 10_000 / (4 * 3600)  # pairs/s of the paper's run on eight GPUs


def cpu() -> float:
    """Return CPU seconds of this process so far; workers count when they have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def rate(batches: Iterable, pairs: int) -> float:
    """Return pairs/s of batches that are there when asked for, or made then."""
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * pairs / (time.perf_counter() - start)


def write_pairs(root: Path, pairs: list[dict], videos: Path) -> str:
    """Make shards of the pairs in `root` and return their directory."""
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = preparation.Settings(num_frames=FRAMES)
    preparation.prepare(root / "pairs.jsonl", videos, root / "shards", settings)
    return str(root / "shards")


def make_world(root: Path) -> None:
    """Make shards and a tokenizer of rendered videos, four pairs each."""
    videos = make_videos(root / "videos", seed=3, seconds=[SECONDS] * VIDEOS)
    asked = [(Path(v.path).name, q) for v in videos for q in v.questions[:4]]
    texts = [text for _, q in asked for text in (q.text, q.answer)]
    save_tokenizer(train_tokenizer(texts), root / "tokenizer")
    pairs = [
        {"video": name, "prompt": q.text, "chosen": q.answer, "rejected": f"Not {q.answer}"}
        for name, q in asked
    ]
    write_pairs(root, pairs, root / "videos")


class Step:
    """The train step of `configs/tiny.py` with its state."""

    def __init__(self, config: ConfigDict):
        model, wanted = families.preset("tiny_longva"), experiment.read(config)
        self.mesh = make_mesh(dataclasses.asdict(wanted.mesh))
        optimizer = make_optimizer(wanted.optimizer, learning_rate_schedule(1e-4, 100, 0.1))
        state = new_state(families.init_params(model, seed=0), optimizer, wanted.optimizer.freeze)
        self._state = jax.device_put(state, jax.NamedSharding(self.mesh, jax.P()))
        step = make_step(model, wanted.objective, wanted.compute, optimizer)
        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self, batch: Batch) -> None:
        logps = np.zeros((*batch.pair_index.shape, 2), np.float32)
        batch = dataclasses.replace(batch, reference_logps=logps)
        self._state, metrics = self._step(self._state, to_global(batch, self.mesh))
        jax.block_until_ready(metrics)


def waiting(batches: Iterator, step: Step, count: int, pairs: int) -> tuple[float, float]:
    """Return pairs/s of the two together and the share of the time spent waiting for input."""
    waited, start = 0.0, time.perf_counter()
    for _ in range(count):
        wait = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - wait
        step(batch)
    spent = time.perf_counter() - start
    return count * pairs / spent, waited / spent


def against_the_step(root: Path, pairs_per_row: int) -> list[list[str]]:
    """Return rows of the first table."""
    config = tiny()
    B, model = config.train.batch_size, families.preset("tiny_longva")
    count = 4 * VIDEOS * 4 // B  # four epochs
    data = DataConfig(
        **ENDLESS,
        batch_size=B,
        shards=str(root / "shards"),
        num_frames=FRAMES,
        pairs_per_row=pairs_per_row,
        prefix_multiple=config.data.prefix_multiple,
        response_multiple=config.data.response_multiple,
        workers=0,
    )
    step, rows = Step(config), []
    pipeline = Pipeline(data, model, load_tokenizer(root / "tokenizer"))
    batch = pipeline[0]
    step(batch)  # compiles
    start = cpu()
    step_rate = rate((step(batch) for _ in range(count)), B)
    step_cpu = (cpu() - start) / (count * B)
    start = cpu()
    rate((pipeline[k] for k in range(count)), B)
    input_cpu = (cpu() - start) / (count * B)
    for workers in (0, 2):
        pipeline.config = dataclasses.replace(data, workers=workers)
        batches = iter(pipeline)
        next(batches)  # starts threads or processes
        alone = rate(itertools.islice(batches, count), B)
        together, waited = waiting(batches, step, count, B)
        batches.close()
        cells = [f"{pairs_per_row}", f"{workers}", f"{alone:.0f}", f"{step_rate:.0f}"]
        cells += [f"{alone / step_rate:.1f}", f"{together:.0f}", f"{waited:.1%}"]
        rows.append([*cells, f"{step_cpu / input_cpu:.1f}"])
    return rows


def at_7b(root: Path) -> list[list[str]]:
    """Return rows of the second table."""
    rows, names = [], sorted(path.name for path in Path(MEDIA.value).glob("*.mp4"))
    tokenizer = load_tokenizer(TOKENIZER.value)
    for name in names:
        pair = {"video": name, "prompt": "What happens?", "chosen": "This.", "rejected": "That."}
        (root / name).mkdir()
        shards = write_pairs(root / name, [pair], Path(MEDIA.value))
        for size in ("longva_7b", "llava_video_7b"):
            # Threads at work are counted in CPU seconds, whatever else the machine does.
            data = DataConfig(**ENDLESS, batch_size=1, shards=shards, num_frames=FRAMES, workers=0)
            pipeline = Pipeline(data, families.preset(size), tokenizer)
            pipeline[0]
            start, count = cpu(), 4
            for k in range(count):
                pipeline[k]
            seconds = (cpu() - start) / count
            side = families.preset(size).tower.image_size
            cells = [name, size, f"{side}", f"{seconds:.2f}", f"{1 / seconds:.2f}"]
            rows.append([*cells, f"{PAPER * seconds:.2f}"])
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return the table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


INTRODUCTION = """# The input pipeline, measured

{cores} {machine} cores that other programs were using too: rates are low and noisy. CPU times say
more: what a step costs a core, over what its input costs one.

Written by `python benchmarks/input.py --output=docs/results/input.md`.

"""


def main(_) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_world(root)
        head = ["pairs per row", "workers", "input pairs/s", "step pairs/s", "input / step"]
        head += ["together pairs/s", "waiting for input", "CPU time step / input"]
        text = INTRODUCTION.format(cores=os.cpu_count(), machine=platform.machine())
        text += "## The tiny model, 32 frames\n\n"
        text += table(head, against_the_step(root, 4) + against_the_step(root, 1))
        text += (
            "\nRendered clips of 96 frames; 0 workers are two threads of the process that trains."
        )
        text += "\n\n## What the pipeline feeds at the size of the 7B models, 32 frames\n\n"
        head = ["clip", "model", "pixels", "CPU s per pair", "pairs/s of a core"]
        text += table([*head, "cores for the paper's 10,000 pairs in 4 h"], at_7b(root))
    print(text, end="")
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
