"""Carry out the runs of the study at miniature size.

Base models of several seeds are trained, and every one is trained on pairs made from its own
answers in all the ways of `rows.ROWS`. A run does what is missing of the stages of its seed and
leaves `{row}_answers.json` in `{family}/seed_{seed}/`; tables and figures are made of these. What
all seeds share lies in `common/`. Runs of different seeds may run at the same time.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from tpo_jax import families
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.data.clips import Clip
from tpo_jax.errors import InputError
from tpo_jax.io.files import as_json, lock, read_json, write_json
from tpo_jax.io.processes import end_with_parent
from tpo_jax.study import needles, pairs, sources, stages
from tpo_jax.study.asking import ask_held_out, generator_of
from tpo_jax.study.cells import markdown
from tpo_jax.study.encoder import encoder_of
from tpo_jax.study.gates import gate_table, gates
from tpo_jax.study.records import Answer, Candidate, StudyRun, read_rows, write_rows
from tpo_jax.study.rows import ROWS
from tpo_jax.study.settings import (
    BLIND_OF,
    COMMON_SEED,
    CURVE_OF,
    DECODER_OF,
    NEEDLES_OF,
    Choices,
    draws,
    row_config,
)
from tpo_jax.study.stages import LONG_FRAMES, LONG_SECONDS, MODEL, Stages, Train
from tpo_jax.worlds.world import WorldVideo

SECONDS_TO_SAVE = 30  # a checkpoint of the training that a worker does


def stretch(directory: Path) -> None:
    """Write `stretched/model`: the base with positions scaled for twice the length, not trained.

    NTK-aware scaling: another base of the rotations, so that the slowest turns half as far.
    """
    loaded = load_model(directory / "base" / "model", dtype=None)
    decoder = loaded.config.decoder
    power = decoder.head_dim / (decoder.head_dim - 2)
    decoder = dataclasses.replace(decoder, rope_theta=decoder.rope_theta * 2**power)
    config = dataclasses.replace(loaded.config, decoder=decoder)
    save_model(directory / "stretched" / "model", config, loaded.params, loaded.tokenizer_directory)


@functools.lru_cache(maxsize=16)
def _eval_clips(
    directory: Path, seconds: int, num_frames: int
) -> tuple[list[WorldVideo], list[Clip]]:
    videos = stages.videos_of(directory, f"eval_{seconds}")
    return videos, stages.clips_of(videos, num_frames)


def evaluate(directory: Path, family: str, name: str, choices: Choices, model: str) -> None:
    """Ask a model the held-out questions and write `{name}_answers.json`.

    Long videos are shown at several numbers of frames, short ones at theirs. Rows of `CURVE_OF` are
    asked at further numbers of frames, those of `BLIND_OF` also with another video.

    Args:
        directory: of the family and the seed.
        family: preset of the model.
        choices: numbers of frames.
        model: directory of the model below `directory`.
    """
    generator = generator_of(directory / model / "model")
    settings = [(LONG_SECONDS, frames, False) for frames in choices.frames]
    settings += [
        (seconds, seconds * LONG_FRAMES // LONG_SECONDS, False)
        for seconds in choices.scale.lengths
        if seconds != LONG_SECONDS
    ]
    if family == MODEL and name in CURVE_OF:
        settings += [(LONG_SECONDS, frames, False) for frames in choices.curve]
    if family == MODEL and name in BLIND_OF:
        settings.append((LONG_SECONDS, LONG_FRAMES, True))
    rows: list[Answer] = []
    for seconds, num_frames, blind in settings:
        videos, clips = _eval_clips(directory, seconds, num_frames)
        rows += ask_held_out(generator, videos, clips, seconds, blind)
    write_rows(directory / f"{name}_answers.json", rows)


def carry_out(run: StudyRun, workdir: Path, choices: Choices, train: Train) -> None:
    """Do what is missing of a run.

    Raises:
        InputError: another process works on the seed.
    """
    name, wall, cpu = f"= {run.family} seed {run.seed}: {run.row}", time.time(), time.process_time()
    print(name, file=sys.stderr, flush=True)
    directory, common = run.directory(workdir), workdir / "common"
    with _locked(directory):
        if other := DECODER_OF.get(run.family):
            there = StudyRun(other, run.seed, "base").directory(workdir)
            names = ("long", *(f"eval_{seconds}" for seconds in choices.scale.lengths))
            _link(directory, [there / f"{name}{end}" for name in names for end in ("", ".json")])
        stages.long_stages(Stages(directory), choices.scale, run.seed)
        _common(common, run.family, choices)
        _link(directory, [common / "tokenizer", common / "short_shards", common / "replay_shards"])
        _stages(run, workdir, choices, train)
    wall, cpu = time.time() - wall, time.process_time() - cpu
    print(f"{name}: {wall:.0f} s, {cpu:.0f} s of a core", file=sys.stderr, flush=True)


def _link(directory: Path, made: Sequence[Path]) -> None:
    for path in made:
        if not (directory / path.name).exists():
            (directory / path.name).symlink_to(os.path.relpath(path, directory))


def _common(common: Path, family: str, choices: Choices) -> None:
    """Make what all seeds share; the first run that comes does it."""
    scale = choices.scale
    with _locked(common, wait=True):
        stage = Stages(common)
        stages.short_stages(stage, scale, COMMON_SEED)
        replayed = (common, COMMON_SEED, scale)
        stage("pairs about short videos", "replay_shards", sources.replay, *replayed)
        stage(f"encoder of {family}", family, make_encoder, common, family, scale)


def make_encoder(common: Path, family: str, scale: stages.Scale) -> None:
    """Write the model of a family from which seeds take the encoder."""
    stages.initial_model(common, scale, COMMON_SEED, family)
    (common / "initial").rename(common / family)


def initial_model(
    directory: Path, family: str, seed: int, encoder: Path, decoder: Path | None
) -> None:
    """Write `initial/`: random weights, with encoder and decoder of other model directories."""
    config = families.preset(family)
    params = families.init_params(config, seed)
    params |= encoder_of(load_model(encoder, dtype=None).params)
    if decoder:
        params["decoder"] = load_model(decoder, dtype=None).params["decoder"]
    save_model(directory / "initial", config, params, directory / "tokenizer")


def _stages(run: StudyRun, workdir: Path, choices: Choices, train: Train) -> None:
    directory = run.directory(workdir)
    stage, scale, seed, decoder = Stages(directory), choices.scale, run.seed, None
    if other := DECODER_OF.get(run.family):
        decoder = StudyRun(other, run.seed, "base").directory(workdir) / "base" / "model"
        scale = dataclasses.replace(scale, base_steps=choices.adapting_steps)
    initial = (directory, run.family, seed, workdir / "common" / run.family, decoder)
    stage("initial weights", "initial", initial_model, *initial)
    stages.base_stage(stage, scale, seed, train)
    if miniature := ROWS[run.row].miniature:
        made = (directory, run.row, seed, scale)
        answers, shards = f"{miniature.answers}.json", f"{miniature.pairs}_shards/manifest.json"
        answering = f"answers of {miniature.after or 'the base'}"
        stage(answering, answers, pairs.answer, *made, draws(run.family))
        stage(f"pairs {miniature.pairs}", shards, sources.make, *made)
        if miniature.stretched:
            stage("positions scaled", "stretched/model", stretch, directory)
            asked = (directory, run.family, "base_stretched", choices, "stretched")
            stage("evaluation of base_stretched", "base_stretched_answers.json", evaluate, *asked)
        _tell_gates(directory)
        config, place = row_config(directory, run.row, scale, seed), f"tuned/{run.row}"
        trained = (config, directory / place, train, miniature.kept)
        stage(f"training of {run.row}", f"{place}/trained.json", stages.train_row, *trained)
    model = f"tuned/{run.row}" if miniature else "base"
    if run.family == MODEL and run.row in NEEDLES_OF:
        find = (directory, run.row, model, seed, choices)
        stage(f"needles of {run.row}", f"{run.row}_needles.json", find_needles, *find)
    asked = (directory, run.family, run.row, choices, model)
    stage(f"evaluation of {run.row}", f"{run.row}_answers.json", evaluate, *asked)


def _tell_gates(directory: Path) -> None:
    """Print what the base model shows, if it was evaluated."""
    if (answers := directory / "base_answers.json").exists():
        made = read_rows(directory / "answers.json", Candidate)
        print(markdown(gate_table(gates(read_rows(answers, Answer), made))), file=sys.stderr)


def find_needles(directory: Path, name: str, model: str, seed: int, choices: Choices) -> None:
    """Write which needles a model finds."""
    found = needles.search(directory / model / "model", seed, choices.lengths, choices.needles)
    write_json(directory / f"{name}_needles.json", dataclasses.asdict(found))


def check_workdir(workdir: Path, choices: Choices, *, make: bool = True) -> None:
    """Check that a directory holds results of these choices.

    Args:
        make: make the directory if it is absent.

    Raises:
        InputError: it holds results of other choices, or is absent and may not be made.
    """
    path, ours = workdir / "choices.json", as_json(choices)
    if not path.exists():
        if not make:
            raise InputError(f"--workdir={workdir}: no folder of results, {path.name} is missing")
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, ours)
    if not isinstance(theirs := read_json(path), dict):
        raise InputError(f"{path}: does not say which choices the results are of; remove it")
    if differs := sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)):
        raise InputError(
            f"--workdir={workdir} holds results of other choices ({', '.join(differs)}); "
            "use another one"
        )


def carry_out_all(
    todo: Sequence[StudyRun], workdir: Path, choices: Choices, train: Train, workers: int
) -> None:
    """Carry out runs in order, but never two of one seed at a time.

    Args:
        todo: of these, the runs whose answers are absent.
        choices: the same for all.
        train: as in `quickstart.run`; importable by name where there are several workers.

    Raises:
        InputError: another process works on a seed.
    """
    waiting = [run for run in todo if not run.answers(workdir).exists()]
    if workers <= 1 or len(waiting) <= 1:
        for run in waiting:
            carry_out(run, workdir, choices, train)
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in itertools.islice(itertools.cycle(_cores()), workers):
        cores.put(core)
    with concurrent.futures.ProcessPoolExecutor(
        *(workers, context), initializer=begin_worker, initargs=(workdir / "compiled", cores)
    ) as pool:
        running: dict[concurrent.futures.Future, StudyRun] = {}
        while waiting or running:
            busy = {run.seed for run in running.values()}
            for run in list(waiting):
                if len(running) < workers and run.seed not in busy:
                    waiting.remove(run)
                    busy.add(run.seed)
                    running[pool.submit(carry_out, run, workdir, choices, train)] = run
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                del running[future]
                future.result()


@contextlib.contextmanager
def _locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, made if absent; while another process does, wait or raise."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        lock(file, f"{directory}: another run is working there", wait)
        yield


def _cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def begin_worker(compiled: Path, cores: multiprocessing.Queue) -> None:
    """Give a worker a core of its own, where the system can do that, and one device of one thread.

    Threads that move between cores take a third longer. Programs compiled once serve all workers.
    """
    os.environ["NPROC"], core = "1", cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    end_with_parent(SECONDS_TO_SAVE)
    jax.config.update("jax_compilation_cache_dir", str(compiled))
