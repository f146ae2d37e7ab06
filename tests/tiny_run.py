"""A tiny world as shards on disk, the config of a run on it that takes seconds, and what a run left
behind.
"""

import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from tpo_jax.data import preparation
from tpo_jax.training.experiment import base
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

VIDEOS, PAIRS, FRAMES, SECONDS = 6, 24, 8, 40
HELD_OUT = 5  # pairs; less than a batch


def make_world(root: Path) -> None:
    """Make videos, a tokenizer, pairs and their shards, and shards of five more pairs."""
    videos = make_videos(root / "videos", seed=5, seconds=[SECONDS] * VIDEOS, workers=1)
    each = PAIRS // VIDEOS
    questions = [(v, q) for v in videos for q in v.questions[:each]]
    assert len(questions) == PAIRS
    texts = [text for _, q in questions for text in (q.text, q.answer)]
    save_tokenizer(train_tokenizer(texts, vocab_size=400), root / "tokenizer")
    prepare(root, "pairs.jsonl", "shards", questions, num_shards=2)
    held_out = [(v, v.questions[each]) for v in videos[:HELD_OUT]]
    prepare(root, "held_out.jsonl", "held_out", held_out, num_shards=1)


def prepare(root: Path, pairs: str, shards: str, questions: list, num_shards: int) -> None:
    """Write a list of pairs, whose rejected answers are those of other questions, and shards."""
    wrong = [q.answer for _, q in questions[7:] + questions[:7]]
    with (root / pairs).open("w") as file:
        for (video, question), other in zip(questions, wrong, strict=True):
            pair = {
                "video": Path(video.path).name,
                "prompt": question.text,
                "chosen": question.answer,
                "rejected": f"No. {other}",
                "kind": question.kind,
            }
            file.write(json.dumps(pair) + "\n")
    settings = preparation.Settings(num_frames=FRAMES)
    preparation.prepare(
        root / pairs,
        root / "videos",
        root / shards,
        settings,
        preparation.Work(num_shards=num_shards),
    )


def tiny_config(world: Path) -> ConfigDict:
    """Return six steps over two epochs of DPO alone, held-out pairs evaluated after every second
    step; tests change fields of their own copy.
    """
    config = base()
    config.model.preset = "tiny_longva"
    config.model.tokenizer = str(world / "tokenizer")
    config.data.shards = str(world / "shards")
    config.data.eval_shards = str(world / "held_out")
    config.data.num_frames = FRAMES
    config.data.prefix_multiple = 16
    config.data.workers = 0
    config.objective.beta = 0.3
    config.objective.alpha = 0.0
    config.compute.dtype = "float32"
    config.compute.remat = "none"
    config.train.batch_size = 8
    config.train.num_epochs = 2
    config.train.learning_rate = 1e-3
    config.train.log_every = 1
    config.train.eval_every = 2
    config.train.checkpoint_every = 2
    return config


def final_state(workdir: Path, step: int = 6) -> dict:
    """The train state of a checkpoint, NumPy."""
    found = ocp.load_checkpointables(workdir / "checkpoints" / str(step), {"state": None})
    return jax.tree.map(np.asarray, found["state"])


def metrics(workdir: Path) -> list[dict]:
    """The records of `metrics.jsonl` without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timings = ("pairs/s", "time/", "memory/")
    return [{k: v for k, v in json.loads(x).items() if not k.startswith(timings)} for x in lines]


def same_bits(a, b) -> bool:
    """Whether two trees of arrays are equal, NaN included."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
