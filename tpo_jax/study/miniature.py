"""The method in miniature: the embedded world from rendering to the report.

Videos are rendered, a base model is trained on short ones, answers questions about long ones well
and badly informed, and is trained to prefer its better informed answers. The report compares it
with its base on other long videos. Every stage leaves its result in the working directory and is
not done again if it is there.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from tpo_jax import families
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.data import preparation
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Generator
from tpo_jax.io.files import read_json, write_json, write_lines
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.study import report
from tpo_jax.study.pretrain import pretrain_tower
from tpo_jax.study.rows import tiny
from tpo_jax.study.scoring import exact
from tpo_jax.study.self_training import Conditions, Query, ask, self_pairs
from tpo_jax.video import sampling
from tpo_jax.worlds.labels import SIZES, frame_labels
from tpo_jax.worlds.questions import Question
from tpo_jax.worlds.timeline import make_timeline
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer, world_texts
from tpo_jax.worlds.world import WorldVideo, make_videos

MODEL = "tiny_longva"
SHORT_FRAMES, LONG_FRAMES = 12, 32
SHORT_SECONDS = (23, 34)  # at least, at most: two to three seconds a frame
# Of varied short videos: frames, and seconds that each of them lasts.
VARIED_FRAMES, VARIED_STRIDES = (8, SHORT_FRAMES), (2, 4)
LONG_SECONDS = 96
LONG_WORLD = 2000  # the world of the long videos is that of the seed and this
MAX_NEW_TOKENS = 12

Train = Callable[[ConfigDict, Path], Path | None]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything."""

    short_videos: int = 4500
    # With a single number of frames a question always stands at one distance from the start, and
    # a model that knows no other finds less one frame further. Varied ones take longer to learn.
    varied: bool = False
    tower_steps: int = 1000
    base_steps: int = 1350
    long_videos: int = 900
    eval_videos: int = 300
    frames: tuple[int, ...] = (8, 16, 32, 48)
    lengths: tuple[int, ...] = (36, 96)  # seconds; the first is that of the short videos
    temperature: float = 0.0  # of the base model's own answers
    truth_filter: bool = True  # keep pairs whose chosen answer is true and whose rejected is not

    @property
    def short_rule(self) -> str:
        """How the frames of short videos are sampled: varied ones hold no others."""
        return "fps" if self.varied else "uniform"


SCALES = {
    "full": Scale(),
    # Minutes become seconds: shows that every stage runs, and nothing about the method.
    "smoke": Scale(48, False, 20, 6, 16, 12, (16, 32), (96,), 1.0, truth_filter=False),
}


class Stages:
    """Runs the stages whose result is not there yet, and keeps how long each took."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._times = workdir / "times.json"
        self.seconds = read_json(self._times) if self._times.exists() else {}

    def __call__(self, name: str, result: str, make: Callable, *arguments) -> None:
        """Calls `make(*arguments)` unless `workdir/result`, its last deed, is there."""
        path = self.workdir / result
        if not path.exists():
            print(f"== {name}", file=sys.stderr, flush=True)
            start = time.monotonic()
            make(*arguments)
            if not path.exists():
                raise InputError(f"{name} was stopped before its end; run again to go on")
            self.seconds[name] = round(time.monotonic() - start, 1)
            write_json(self._times, self.seconds)


def render(
    workdir: Path, name: str, seed: int, seconds: list[int], strides: list[int] | None = None
) -> None:
    """Videos in `workdir/name/`, and what can be asked about them in `workdir/name.json`."""
    videos = make_videos(workdir / name, seed, seconds, os.cpu_count() or 1, strides)
    write_json(workdir / f"{name}.json", [dataclasses.asdict(video) for video in videos])


def videos_of(workdir: Path, name: str) -> list[WorldVideo]:
    """What `render` left."""
    return [
        WorldVideo(v["path"], v["duration"], tuple(Question(**q) for q in v["questions"]))
        for v in read_json(workdir / f"{name}.json")
    ]


def frames_of(
    videos: list[WorldVideo], num_frames: int, model: str = MODEL
) -> tuple[np.ndarray, np.ndarray]:
    """Frames as the model takes them, uint8 `[n, F, S, S, 3]`, and timestamps `[n, F]`."""
    config = families.preset(model)
    read = [sampling.read_frames(video.path, "uniform", num_frames) for video in videos]
    frames = np.stack([families.of(config).preprocess(clip, config) for clip, _, _ in read])
    return frames, np.stack([times for _, times, _ in read])


def make_tokenizer(workdir: Path, seed: int) -> None:
    """The tokenizer of the world's language."""
    save_tokenizer(train_tokenizer(world_texts(seed)), workdir / "tokenizer")


def write_pairs(path: Path, pairs: list[dict]) -> None:
    """A pair list for `prepare`."""
    write_lines(path, pairs)


def base_pairs(videos: list[WorldVideo]) -> list[dict]:
    """True answers about short videos. Rejected is any other answer; supervised training ignores
    it.
    """
    return [
        {
            "id": f"{v}-{q}",
            "video": Path(video.path).name,
            "prompt": question.text,
            "chosen": question.answer,
            "rejected": "none of these",
            "kind": "other",
        }
        for v, video in enumerate(videos)
        for q, question in enumerate(video.questions)
    ]


def prepare(workdir: Path, pairs: str, videos: str, num_frames: int, rule: str = "uniform") -> None:
    """`{pairs}.jsonl` about `videos/` to `{pairs}_shards/`."""
    preparation.prepare(
        workdir / f"{pairs}.jsonl",
        workdir / videos,
        workdir / f"{pairs}_shards",
        preparation.Settings(rule, num_frames),
        num_shards=4,
        workers=os.cpu_count() or 1,
    )


def short_shards(workdir: Path, scale: Scale) -> None:
    """Shards for the base model."""
    write_pairs(workdir / "short.jsonl", base_pairs(videos_of(workdir, "short")))
    prepare(workdir, "short", "short", SHORT_FRAMES, scale.short_rule)


def initial_model(workdir: Path, scale: Scale, seed: int, model: str = MODEL) -> None:
    """Random weights with a tower that learned to name what a frame shows."""
    config = families.preset(model)
    videos = videos_of(workdir, "short")[: max(32, scale.short_videos // 2)]
    frames, labels = [], []
    for index, video in enumerate(videos):
        clip, times, _ = sampling.read_frames(video.path, scale.short_rule, SHORT_FRAMES)
        frames.append(families.of(config).preprocess(clip, config))
        timeline = make_timeline(seed + 1000, index, round(video.duration))
        labels.append(frame_labels(timeline, times))
    params, loss = pretrain_tower(
        config,
        families.init_params(config, seed),
        np.concatenate(frames),
        np.concatenate(labels),
        SIZES,
        steps=scale.tower_steps,
        seed=seed,
    )
    print(f"tower: label loss {loss:.3f}", file=sys.stderr)
    save_model(workdir / "initial", config, params, workdir / "tokenizer")


def base_config(workdir: Path, scale: Scale, seed: int):
    """Supervised training on short videos, eight questions a row, tower frozen."""
    config = tiny()
    config.model.checkpoint = str(workdir / "initial")
    config.data.shards = str(workdir / "short_shards")
    config.data.num_frames = SHORT_FRAMES
    config.data.sampling = scale.short_rule
    config.data.pairs_per_row = 8
    # What a core works on then fits its cache better.
    config.compute.micro_batches = max(1, 8 // jax.device_count())
    config.compute.scan, config.compute.remat = False, "none"
    config.objective.dpo_weight = 0.0
    config.objective.alpha = 1.0
    config.train.batch_size = 128
    config.train.log_every = 50
    config.train.num_steps = scale.base_steps
    config.train.learning_rate = 2e-3
    config.train.warmup_ratio = 0.04
    config.train.weight_decay = 0.01
    config.train.seed = seed
    return config


def tpo_config(workdir: Path, seed: int):
    """One epoch over the self-generated pairs."""
    config = tiny()
    config.model.checkpoint = str(workdir / "base" / "model")
    config.data.shards = str(workdir / "pairs_shards")
    config.train.seed = seed
    return config


def generator_of(directory: Path, temperature: float = 0.0, seed: int = 0) -> Generator:
    """Answers of a model directory, rows spread over all devices."""
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "context": 1})
    loaded = load_model(directory, mesh=mesh)
    tokenizer = load_tokenizer(loaded.tokenizer_directory)
    return Generator(
        loaded.config,
        loaded.params,
        tokenizer,
        max_new_tokens=MAX_NEW_TOKENS,
        sampling=Sampling(temperature=temperature),
        seed=seed,
        batch_rows=64,
        mesh=mesh,
    )


def curate(workdir: Path, scale: Scale) -> None:
    """The base model's answers, their quality per type, and the pairs whose chosen answer is
    true.
    """
    videos = videos_of(workdir, "long")
    frames, times = frames_of(videos, LONG_FRAMES)
    queries = [[Query(q.text, q.segment) for q in video.questions] for video in videos]
    found = self_pairs(
        generator_of(workdir / "base" / "model", scale.temperature),
        frames,
        times,
        queries,
        Conditions(window=SHORT_FRAMES, sparse=4),
    )
    kept, quality = [], []
    for pair in found:
        question = videos[pair.video].questions[pair.query]
        chosen_right = exact(pair.chosen, question.answer)
        rejected_right = exact(pair.rejected, question.answer)
        if scale.truth_filter:
            keep = chosen_right and not rejected_right and bool(pair.rejected)
        else:
            keep = bool(pair.chosen and pair.rejected) and not exact(pair.chosen, pair.rejected)
        quality.append(
            {
                "type": question.type,
                "kind": pair.kind,
                "chosen_right": chosen_right,
                "rejected_right": rejected_right,
                "kept": keep,
            }
        )
        if keep:
            kept.append(
                {
                    "id": f"{pair.video}-{pair.query}",
                    "video": Path(videos[pair.video].path).name,
                    "prompt": question.text,
                    "chosen": pair.chosen,
                    "rejected": pair.rejected,
                    "kind": pair.kind,
                    "segment": question.segment,
                    "provenance": {
                        "model": "base",
                        "manipulation": pair.manipulation,
                        "verdict": "chosen true, rejected not" if scale.truth_filter else "differ",
                    },
                }
            )
    print(report.quality_table(quality), file=sys.stderr)
    write_pairs(workdir / "pairs.jsonl", kept)
    write_json(workdir / "quality.json", quality)


def asked(
    generator: Generator,
    videos: list[WorldVideo],
    frames: np.ndarray,
    seconds: int,
    blind: bool = False,
) -> list[dict]:
    """One row per question of videos of `seconds` seconds, of which the model sees `frames`.

    Blind: with the frames of the video before; what the words alone give away.
    """
    frames = np.roll(frames, 1, axis=0) if blind else frames
    answers = ask(generator, frames, [[q.text for q in v.questions] for v in videos])
    return [
        {
            "video": v,
            "seconds": seconds,
            "frames": 0 if blind else frames.shape[1],
            "type": question.type,
            "kind": question.kind,
            "question": question.text,
            "truth": question.answer,
            "answer": answer,
            "right": exact(answer, question.answer),
        }
        for v, video in enumerate(videos)
        for question, answer in zip(video.questions, answers[v], strict=True)
    ]


def evaluate(workdir: Path, name: str, scale: Scale) -> None:
    """Every question of the held-out videos, at several numbers of frames and several lengths."""
    generator = generator_of(workdir / name / "model")
    settings = [(LONG_SECONDS, LONG_FRAMES, True)]
    settings += [(LONG_SECONDS, num_frames, False) for num_frames in scale.frames]
    settings += [
        (seconds, seconds * LONG_FRAMES // LONG_SECONDS, False)
        for seconds in scale.lengths
        if seconds != LONG_SECONDS
    ]
    rows = []
    for seconds, num_frames, blind in settings:
        videos = videos_of(workdir, f"eval_{seconds}")
        rows += asked(generator, videos, frames_of(videos, num_frames)[0], seconds, blind)
    write_json(workdir / f"{name}_answers.json", rows)


def short_stages(stage: Stages, scale: Scale, seed: int) -> None:
    """What a base model is trained with: language, videos and shards."""
    workdir = stage.workdir
    stage("tokenizer", "tokenizer/tokenizer.json", make_tokenizer, workdir, seed)
    rng, n = np.random.default_rng(seed), scale.short_videos
    strides = np.ones(n, int)
    if scale.varied:
        strides = rng.integers(*VARIED_STRIDES, n, endpoint=True)
        lasting = strides * rng.integers(*VARIED_FRAMES, n, endpoint=True)
    else:
        lasting = rng.integers(*SHORT_SECONDS, n, endpoint=True)
    shorts = ("short", seed + 1000, lasting.tolist(), strides.tolist())
    stage("render short videos", "short.json", render, workdir, *shorts)
    stage("shards of short videos", "short_shards", short_shards, workdir, scale)


def long_stages(stage: Stages, scale: Scale, seed: int) -> None:
    """The videos that pairs are made of, and those that are held out."""
    longs = ("long", seed + LONG_WORLD, [LONG_SECONDS] * scale.long_videos)
    stage("render long videos", "long.json", render, stage.workdir, *longs)
    for seconds in scale.lengths:
        held_out = (f"eval_{seconds}", seed + 3000 + seconds, [seconds] * scale.eval_videos)
        name = held_out[0]
        stage(f"render {name}", f"{name}.json", render, stage.workdir, *held_out)


def base_stage(stage: Stages, scale: Scale, seed: int, train: Train) -> None:
    """The base model of a seed."""
    config = base_config(stage.workdir, scale, seed)
    stage("base model", "base/model", train, config, stage.workdir / "base")


def run(workdir: Path, scale: Scale, seed: int, train: Train) -> Path:
    """All stages; returns the report.

    Args:
        workdir: made if absent.
        scale: how much of everything.
        seed: of the world, the weights and the order of the data.
        train: runs the experiment of a config in a directory and leaves `model/` there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    stage = Stages(workdir)
    short_stages(stage, scale, seed)
    long_stages(stage, scale, seed)
    stage("tower", "initial", initial_model, workdir, scale, seed)
    base_stage(stage, scale, seed, train)
    stage("self-generated pairs", "quality.json", curate, workdir, scale)
    stage("shards of pairs", "pairs_shards", prepare, workdir, "pairs", "long", LONG_FRAMES)
    stage("TPO", "tpo/model", train, tpo_config(workdir, seed), workdir / "tpo")
    for name in ("base", "tpo"):
        answers = f"{name}_answers.json"
        stage(f"evaluation of {name}", answers, evaluate, workdir, name, scale)
    return report.write(workdir, seed=seed, scale=dataclasses.asdict(scale), seconds=stage.seconds)
