"""The quickstart, the smallest member of the study: one base model, its pairs, TPO, a report.

A base model is trained on short videos, answers questions about long ones well and badly informed,
and is trained to prefer its better informed answers. The report compares it with its base on other
long videos.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from tpo_jax.errors import InputError
from tpo_jax.io.files import as_json, read_json, write_json, write_lines
from tpo_jax.study import report
from tpo_jax.study.asking import ask_held_out, generator_of
from tpo_jax.study.cells import markdown
from tpo_jax.study.gates import Gate, gate_table, gates
from tpo_jax.study.pairs import answer
from tpo_jax.study.records import Answer, Candidate, read_rows, write_rows
from tpo_jax.study.rows import miniature_of
from tpo_jax.study.settings import row_config
from tpo_jax.study.sources import pairs_of, replay
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
    train_row,
    videos_of,
)

ROW = "best"  # of `rows.ROWS`, which is called TPO here


def make_pairs(workdir: Path, scale: Scale, seed: int) -> None:
    """Write the shards of the pairs of the base model's answers."""
    rows = read_rows(workdir / "answers.json", Candidate)
    pairs = pairs_of(miniature_of(ROW).source, rows, seed, truth=scale.truth_filter)
    write_lines(workdir / "pairs.jsonl", pairs)
    prepare(workdir, "pairs", "long", LONG_FRAMES)


def tpo_config(workdir: Path, scale: Scale, seed: int) -> ConfigDict:
    """Return the config of TPO on the self-generated pairs, and on questions about short videos."""
    config = row_config(workdir, ROW, scale, seed)
    config.data.shards = str(workdir / "pairs_shards")
    return config


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
    return gates(base, read_rows(workdir / "answers.json", Candidate))


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
    stage("answers of the base", "answers.json", answer, workdir, ROW, seed, scale)
    stage("pairs", "pairs_shards", make_pairs, workdir, scale, seed)
    stage("replay of short videos", "replay_shards", replay, workdir, seed, scale)
    stage("evaluation of base", "base_answers.json", evaluate, workdir, "base", scale)
    print(markdown(gate_table(gates_of(workdir))), file=sys.stderr)
    trained = (tpo_config(workdir, scale, seed), workdir / "tpo", train, miniature_of(ROW).kept)
    stage("TPO", "tpo/trained.json", train_row, *trained)
    stage("evaluation of tpo", "tpo_answers.json", evaluate, workdir, "tpo", scale)
    return report.write(workdir, seed, scale, stage.seconds)
