"""What a base model of the synthetic world is made from: language, videos, encoder, training.

Every stage leaves its result in the working directory, and is skipped when the result is there.
"""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tpo_jax import families
from tpo_jax.checkpoints.averaging import average
from tpo_jax.checkpoints.models import save_model
from tpo_jax.data import preparation
from tpo_jax.data.clips import Clip
from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json, write_json, write_lines
from tpo_jax.study.encoder import EncoderTraining, pretrain_encoder
from tpo_jax.study.rows import tiny
from tpo_jax.video import sampling
from tpo_jax.worlds.labels import SIZES, frame_labels
from tpo_jax.worlds.questions import WorldQuestion
from tpo_jax.worlds.timeline import make_timeline
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer, world_texts
from tpo_jax.worlds.world import WorldVideo, make_videos

MODEL = "tiny_longva"
SHORT_FRAMES, LONG_FRAMES = 12, 32
# Short videos: least and most frames, and seconds that each of them lasts. With a single number of
# frames a question always stands at one distance from the start, and a model that knows no other
# finds less one frame further.
FRAMES_OF_SHORT, SECONDS_PER_FRAME = (6, SHORT_FRAMES), (2, 4)
# Most questions per video; held-out videos have eight.
QUESTIONS_OF_SHORT, QUESTIONS_OF_LONG = 16, 12
LONG_SECONDS = 96
# Seed of a world of videos: the run's seed plus this.
SHORT_WORLD, LONG_WORLD, HELD_OUT_WORLD = 1000, 2000, 3000

Train = Callable[[ConfigDict, Path], Path | None]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        replay_videos: short ones that are replayed in training on pairs.
        pairs: most pairs of two answers, and of two videos, of a row.
        updates: of every training on pairs.
        frames: numbers of frames at which the quickstart evaluates.
        lengths: seconds of the held-out videos; the first is that of the short videos.
        temperature: of the base model's own answers.
        truth_filter: keep a pair only if its chosen answer is true and its rejected one is not.
    """

    short_videos: int = 4500
    encoder_steps: int = 1500
    base_steps: int = 2400
    long_videos: int = 800
    eval_videos: int = 200
    replay_videos: int = 1200
    pairs: int = 5000
    updates: int = 800
    frames: tuple[int, ...] = (8, 16, 32, 48, 64, 96)
    lengths: tuple[int, ...] = (24, 96)
    temperature: float = 0.0
    truth_filter: bool = True


SCALES = {
    "full": Scale(),
    # Seconds instead of minutes: shows that every stage runs, and nothing about the method.
    "smoke": Scale(
        short_videos=32,
        encoder_steps=4,
        base_steps=4,
        long_videos=8,
        eval_videos=6,
        replay_videos=8,
        pairs=16,
        updates=2,
        frames=(16, 32),
        lengths=(96,),
        temperature=1.0,
        truth_filter=False,
    ),
}


class Stages:
    """Runs stages whose result is absent, and records the seconds each took in `times.json`."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._times = workdir / "times.json"
        self.seconds: dict[str, float] = read_json(self._times) if self._times.exists() else {}

    def __call__(self, name: str, result: str, make: Callable, *arguments: Any) -> None:
        """Call `make(*arguments)` unless `workdir/result`, its final output, exists.

        Raises:
            InputError: the stage was stopped before its end.
        """
        path = self.workdir / result
        if path.exists():
            return
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        make(*arguments)
        if not path.exists():
            raise InputError(f"{name} was stopped before its end; run again to resume")
        self.seconds[name] = round(time.monotonic() - start, 1)
        write_json(self._times, self.seconds)


def render(workdir: Path, name: str, seed: int, seconds: list[int], **more: Any) -> None:
    """Render videos into `workdir/name/` and write their questions to `workdir/name.json`."""
    videos = make_videos(workdir / name, seed, seconds, os.cpu_count() or 1, **more)
    write_json(workdir / f"{name}.json", [dataclasses.asdict(video) for video in videos])


def videos_of(workdir: Path, name: str) -> list[WorldVideo]:
    """Load the videos that `render` made."""
    return [
        WorldVideo(v["path"], v["duration"], tuple(WorldQuestion(**q) for q in v["questions"]))
        for v in read_json(workdir / f"{name}.json")
    ]


def clips_of(videos: Sequence[WorldVideo], num_frames: int) -> list[Clip]:
    """Return evenly spaced frames of videos, in the videos' own size."""
    read = [sampling.read_frames(video.path, "uniform", num_frames) for video in videos]
    return [Clip(frames, times.tolist(), duration) for frames, times, duration in read]


def make_tokenizer(workdir: Path, seed: int, model: str) -> None:
    """Train the tokenizer of the world's language; it knows the special tokens of the model."""
    tokenizer = train_tokenizer(world_texts(seed))
    template = families.of(families.preset(model)).templates["inference"]
    special = [token for token in template.token_ids if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens(special)
    save_tokenizer(tokenizer, workdir / "tokenizer")


def prepare(workdir: Path, pairs: str, videos: str, num_frames: int, rule: str = "uniform") -> None:
    """Turn `{pairs}.jsonl` about the videos of a folder into `{pairs}_shards/`."""
    preparation.prepare(
        workdir / f"{pairs}.jsonl",
        workdir / videos,
        workdir / f"{pairs}_shards",
        preparation.Settings(rule, num_frames),
        preparation.Work(num_shards=4, workers=os.cpu_count() or 1),
    )


def short_shards(workdir: Path) -> None:
    """Write the shards of the base model: true answers about short videos.

    The rejected answer is a constant; supervised training does not read it.
    """
    pairs = [
        {
            "id": f"{v}-{q}",
            "video": Path(video.path).name,
            "prompt": question.text,
            "chosen": question.answer,
            "rejected": "none of these",
            "kind": "other",
        }
        for v, video in enumerate(videos_of(workdir, "short"))
        for q, question in enumerate(video.questions)
    ]
    write_lines(workdir / "short.jsonl", pairs)
    prepare(workdir, "short", "short", SHORT_FRAMES, "fps")


def initial_model(workdir: Path, scale: Scale, seed: int, model: str = MODEL) -> None:
    """Write `initial/`: random weights, the encoder trained to name what a frame shows."""
    config = families.preset(model)
    videos = videos_of(workdir, "short")[: max(32, scale.short_videos // 2)]
    frames, labels = [], []
    for index, video in enumerate(videos):
        clip, times, _ = sampling.read_frames(video.path, "fps", SHORT_FRAMES)
        frames.append(families.of(config).preprocess(clip, config))
        timeline = make_timeline(seed + SHORT_WORLD, index, round(video.duration))
        # A frame of the model may be several of the video: it has the labels of each.
        labels.append(frame_labels(timeline, times).reshape(len(frames[-1]), -1))
    params, loss = pretrain_encoder(
        config,
        families.init_params(config, seed),
        np.concatenate(frames),
        np.concatenate(labels),
        SIZES * (labels[0].shape[1] // len(SIZES)),
        EncoderTraining(scale.encoder_steps, seed),
    )
    print(f"encoder: label loss {loss:.3f}", file=sys.stderr)
    save_model(workdir / "initial", config, params, workdir / "tokenizer")


def base_config(workdir: Path, scale: Scale, seed: int) -> ConfigDict:
    """Return the config of the base model: supervised, short videos, tower frozen."""
    config = tiny()
    config.model.checkpoint = str(workdir / "initial")
    config.data.shards = str(workdir / "short_shards")
    config.data.num_frames = SHORT_FRAMES
    config.data.sampling = "fps"
    # With eight a row, of half as many videos, one base in four misses a type.
    config.data.pairs_per_row = 4
    # Few rows at a time: their working set fits the cache of a core.
    config.compute.micro_batches = max(1, 4 // jax.device_count())
    config.compute.scan, config.compute.remat = False, "none"
    config.objective.dpo_weight = 0.0
    config.objective.alpha = 1.0
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.num_steps = scale.base_steps
    config.train.learning_rate = 1.5e-3
    config.train.warmup_ratio = 0.04
    config.train.weight_decay = 0.01
    config.train.seed = seed
    return config


def short_stages(stage: Stages, scale: Scale, seed: int, model: str = MODEL) -> None:
    """Make what a base model is trained on: tokenizer, short videos and their shards."""
    workdir = stage.workdir
    stage("tokenizer", "tokenizer/tokenizer.json", make_tokenizer, workdir, seed, model)
    rng, n = np.random.default_rng(seed), scale.short_videos
    strides = rng.integers(*SECONDS_PER_FRAME, n, endpoint=True)
    lasting = strides * rng.integers(*FRAMES_OF_SHORT, n, endpoint=True)
    videos = ("short", seed + SHORT_WORLD, lasting.tolist())
    make = functools.partial(render, strides=strides.tolist(), questions=QUESTIONS_OF_SHORT)
    stage("render short videos", "short.json", make, workdir, *videos)
    stage("shards of short videos", "short_shards", short_shards, workdir)


def long_stages(stage: Stages, scale: Scale, seed: int) -> None:
    """Render the videos that pairs are made of, and the held-out videos."""
    longs = ("long", seed + LONG_WORLD, [LONG_SECONDS] * scale.long_videos)
    make = functools.partial(render, questions=QUESTIONS_OF_LONG)
    stage("render long videos", "long.json", make, stage.workdir, *longs)
    for seconds in scale.lengths:
        name, world = f"eval_{seconds}", seed + HELD_OUT_WORLD + seconds
        held_out = (name, world, [seconds] * scale.eval_videos)
        stage(f"render {name}", f"{name}.json", render, stage.workdir, *held_out)


def train_row(config: ConfigDict, directory: Path, train: Train, kept: float) -> None:
    """Train, put the mean of start and result in the place of `model/`, and write `trained.json`.

    That file comes last: `model/` alone may lack the mean, and a second start makes both again.

    Args:
        kept: share of the start; 0: the result stays as it is.
    """
    if train(config, directory) is None:
        return
    start, model = config.model.checkpoint, directory / "model"
    if kept:
        average([start, model], [kept, 1 - kept], model)
    write_json(directory / "trained.json", {"start": start, "kept": kept})


def base_stage(stage: Stages, scale: Scale, seed: int, train: Train) -> None:
    """Train the base model of a seed."""
    config = base_config(stage.workdir, scale, seed)
    stage("base model", "base/model", train, config, stage.workdir / "base")
