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


def make_world(root: Path) -> None:
    """`videos/`, `pairs.jsonl`, `tokenizer/` and `shards/`: rendered, encoded, prepared."""
    videos = make_videos(root / "videos", seed=5, seconds=[SECONDS] * VIDEOS, workers=1)
    questions = [(v, q) for v in videos for q in v.questions[: PAIRS // VIDEOS]]
    assert len(questions) == PAIRS
    texts = [text for _, q in questions for text in (q.text, q.answer)]
    save_tokenizer(train_tokenizer(texts, vocab_size=400), root / "tokenizer")
    wrong = [q.answer for _, q in questions[7:] + questions[:7]]
    with (root / "pairs.jsonl").open("w") as file:
        for (video, question), other in zip(questions, wrong, strict=True):
            pair = {
                "video": Path(video.path).name,
                "prompt": question.text,
                "chosen": question.answer,
                "rejected": f"No. {other}",
                "kind": question.kind,
            }
            file.write(json.dumps(pair) + "\n")
    preparation.prepare(
        root / "pairs.jsonl",
        root / "videos",
        root / "shards",
        preparation.Settings(num_frames=FRAMES),
        preparation.Work(num_shards=2),
    )


def tiny_config(world: Path) -> ConfigDict:
    """Six steps over two epochs of DPO alone; tests change fields of their own copy."""
    config = base()
    config.model.preset = "tiny_longva"
    config.model.tokenizer = str(world / "tokenizer")
    config.data.shards = str(world / "shards")
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
