"""The quickstart, the smallest member of the study: one base model, its pairs, TPO, a report.

A base model is trained on short videos, answers questions about long ones well and badly informed,
and is trained to prefer its better informed answers. The report compares it with its base on other
long videos.
"""

import itertools
import sys
from pathlib import Path

from ml_collections import ConfigDict

from tpo_jax.errors import InputError
from tpo_jax.io.files import as_json, read_json, write_json, write_lines
from tpo_jax.study import report
from tpo_jax.study.asking import ask, ask_held_out, generator_of
from tpo_jax.study.cells import markdown
from tpo_jax.study.gates import Gate, gate_table, gates
from tpo_jax.study.pairs import candidates, pair_line
from tpo_jax.study.records import Answer, Quality, read_rows, write_rows
from tpo_jax.study.rows import tiny
from tpo_jax.study.sources import replay
from tpo_jax.study.stages import (
    LONG_FRAMES,
    LONG_SECONDS,
    MODEL,
    Scale,
    Stages,
    Train,
    base_stage,
    clips_of,
    initial_model,
    long_stages,
    prepare,
    short_stages,
    videos_of,
)
from tpo_jax.study.statistics import exact

# Of the localized pairs about what the base answers with all frames, one in so many is kept: they
# teach little, and without any of them it is forgotten.
EASY = 4


def tpo_config(workdir: Path, seed: int) -> ConfigDict:
    """Return the config of TPO on the self-generated pairs, and on questions about short videos."""
    config = tiny("robust")
    config.model.checkpoint = str(workdir / "base" / "model")
    config.data.shards = str(workdir / "pairs_shards")
    config.data.replay = (str(workdir / "replay_shards"),)
    config.data.replay_weights = (3.0, 2.0)
    config.train.num_epochs = 3
    config.train.learning_rate = 6e-4
    config.train.seed = seed
    return config


def make_pairs(workdir: Path, scale: Scale) -> None:
    """Write the pairs of the base model's answers, and how right the answers are per type."""
    videos = videos_of(workdir, "long")
    generator = generator_of(workdir / "base" / "model", scale.temperature)
    clips = clips_of(videos, LONG_FRAMES)
    questions = [video.questions for video in videos]
    answers = ask(generator, clips, [[q.text for q in asked] for asked in questions])
    kept, quality, easy = [], [], 0
    made_and_told = zip(
        candidates(generator, videos, clips, questions), itertools.chain(*answers), strict=True
    )
    for made, told in made_and_told:
        if scale.truth_filter:
            keep = made.chosen_right and not made.rejected_right and bool(made.rejected)
            if keep and made.kind == "localized" and exact(told, made.truth):
                easy += 1
                keep = easy % EASY == 0
        else:
            differ = not exact(made.chosen, made.rejected)
            keep = bool(made.chosen and made.rejected) and differ
        quality.append(Quality(made.type, made.kind, made.chosen_right, made.rejected_right, keep))
        if keep:
            verdict = "chosen true, rejected not" if scale.truth_filter else "differ"
            kept.append(pair_line(made, verdict))
    write_lines(workdir / "pairs.jsonl", kept)
    write_rows(workdir / "quality.json", quality)


def evaluate(workdir: Path, name: str, scale: Scale) -> None:
    """Ask every question of the held-out videos, at several numbers of frames and lengths."""
    generator = generator_of(workdir / name / "model")
    settings = [(LONG_SECONDS, LONG_FRAMES, True)]
    settings += [(LONG_SECONDS, num_frames, False) for num_frames in scale.frames]
    settings += [
        (seconds, seconds * LONG_FRAMES // LONG_SECONDS, False)
        for seconds in scale.lengths
        if seconds != LONG_SECONDS
    ]
    rows = list[Answer]()
    for seconds, num_frames, blind in settings:
        videos = videos_of(workdir, f"eval_{seconds}")
        clips = clips_of(videos, num_frames)
        rows += ask_held_out(generator, videos, clips, seconds, blind)
    write_rows(workdir / f"{name}_answers.json", rows)


def gates_of(workdir: Path) -> list[Gate]:
    """Return the gates of the base model."""
    base = read_rows(workdir / "base_answers.json", Answer)
    return gates(base, read_rows(workdir / "quality.json", Quality))


def run(workdir: Path, scale: Scale, seed: int, train: Train, model: str = MODEL) -> Path:
    """Run all stages whose result is absent and return the path of the report.

    Args:
        workdir: made if absent.
        scale: how much of everything.
        seed: of the world, the weights and the order of the data.
        train: runs the experiment of a config in a directory and leaves `model/` there.
        model: preset of a tiny model.

    Raises:
        InputError: the directory was begun with another model, seed or scale.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    begun, asked = workdir / "begun.json", {"model": model, "seed": seed, **as_json(scale)}
    if not begun.exists():
        write_json(begun, asked)
    for name, value in read_json(begun).items():
        if asked[name] != value:
            other = f"begun with {name}={value}, not {asked[name]}"
            raise InputError(f"{workdir}: {other}; choose another --workdir")
    stage = Stages(workdir)
    short_stages(stage, scale, seed, model)
    long_stages(stage, scale, seed)
    stage("encoder", "initial", initial_model, workdir, scale, seed, model)
    base_stage(stage, scale, seed, train)
    stage("self-generated pairs", "quality.json", make_pairs, workdir, scale)
    stage("shards of pairs", "pairs_shards", prepare, workdir, "pairs", "long", LONG_FRAMES)
    stage("replay of short videos", "replay_shards", replay, workdir, seed, scale.short_videos)
    stage("evaluation of base", "base_answers.json", evaluate, workdir, "base", scale)
    print(markdown(gate_table(gates_of(workdir))), file=sys.stderr)
    stage("TPO", "tpo/model", train, tpo_config(workdir, seed), workdir / "tpo")
    stage("evaluation of tpo", "tpo_answers.json", evaluate, workdir, "tpo", scale)
    return report.write(workdir, seed, scale, stage.seconds)
