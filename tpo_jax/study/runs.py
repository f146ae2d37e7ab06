"""Carries out the runs of a study.

A run does what is missing of the stages of its seed and leaves `{variant}_answers.json` in
`{family}/seed_{seed}/`; tables and figures are made of these. What all seeds share lies in
`common/`; apart from it runs of different seeds may go on at the same time.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from tpo_jax import families
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json, write_json
from tpo_jax.study import miniature
from tpo_jax.study import needles as study_needles
from tpo_jax.study import pairs as study_pairs
from tpo_jax.study.rows import ROWS
from tpo_jax.study.settings import (
    COMMON_SEED,
    CURVE_OF,
    DECODER_OF,
    NEEDLES_OF,
    Choices,
    Run,
    draws,
    variant_config,
)

SECONDS_TO_SAVE = 30


def stretch(directory: Path) -> None:
    """The base with positions scaled for twice the length, without training (NTK-aware: another
    base of the rotations, so that the slowest turns half as far).
    """
    loaded = load_model(directory / "base" / "model", dtype=None)
    decoder = loaded.config.decoder
    power = decoder.head_dim / (decoder.head_dim - 2)
    decoder = dataclasses.replace(decoder, rope_theta=decoder.rope_theta * 2**power)
    config = dataclasses.replace(loaded.config, decoder=decoder)
    save_model(directory / "stretched" / "model", config, loaded.params, loaded.tokenizer_directory)


@functools.lru_cache(maxsize=16)
def _eval_frames(directory: Path, seconds: int, num_frames: int, family: str):
    videos = miniature.videos_of(directory, f"eval_{seconds}")
    return videos, miniature.frames_of(videos, num_frames, family)[0]


def evaluate(directory: Path, family: str, name: str, choices: Choices, model: str) -> None:
    """Asks a model the held-out questions: long videos at several numbers of frames, short ones at
    theirs; those of a curve also at others, those of needles also with another video.
    """
    generator = miniature.generator_of(directory / model / "model")
    long = miniature.LONG_SECONDS
    settings = [(long, frames, False) for frames in choices.frames]
    settings += [(s, s * 32 // long, False) for s in choices.scale.lengths if s != long]
    if (family, name) in CURVE_OF:
        settings += [(long, frames, False) for frames in choices.curve]
    if (family, name) in NEEDLES_OF:
        settings.append((long, miniature.LONG_FRAMES, True))
    rows = []
    for seconds, num_frames, blind in settings:
        videos, frames = _eval_frames(directory, seconds, num_frames, family)
        rows += miniature.asked(generator, videos, frames, seconds, blind)
    write_json(directory / f"{name}_answers.json", rows)


def carry_out(run: Run, workdir: Path, choices: Choices, train: miniature.Train) -> None:
    """Does what is missing of a run.

    Raises:
        InputError: another process is at work on the seed.
    """
    print(f"= {run.family} seed {run.seed}: {run.variant}", file=sys.stderr, flush=True)
    directory, common = run.directory(workdir), workdir / "common"
    with _alone(directory):
        if other := DECODER_OF.get(run.family):
            there = Run(other, run.seed, "base").directory(workdir)
            names = ("long", *(f"eval_{seconds}" for seconds in choices.scale.lengths))
            _link(directory, [there / f"{name}{end}" for name in names for end in ("", ".json")])
        miniature.long_stages(miniature.Stages(directory), choices.scale, run.seed)
        _common(common, run.family, choices.scale)
        _link(directory, [common / "tokenizer", common / "short_shards"])
        _stages(run, workdir, choices, train)


def _link(directory: Path, made: Sequence[Path]) -> None:
    for path in made:
        if not (directory / path.name).exists():
            (directory / path.name).symlink_to(os.path.relpath(path, directory))


def _common(common: Path, family: str, scale: miniature.Scale) -> None:
    """What all seeds share, made by the first that comes."""
    with _alone(common, wait=True):
        stage = miniature.Stages(common)
        miniature.short_stages(stage, scale, COMMON_SEED)
        stage(f"tower of {family}", family, towers, common, family, scale)


def towers(common: Path, family: str, scale: miniature.Scale) -> None:
    """A model of a family, of which seeds take the tower."""
    miniature.initial_model(common, scale, COMMON_SEED, family)
    (common / "initial").rename(common / family)


def initial_model(directory: Path, family: str, seed: int, tower: Path, decoder: Path | None):
    """Random weights with a tower and, if given, a decoder of other model directories."""
    config = families.preset(family)
    params = families.init_params(config, seed)
    params["tower"] = load_model(tower, dtype=None).params["tower"]
    if decoder:
        params["decoder"] = load_model(decoder, dtype=None).params["decoder"]
    save_model(directory / "initial", config, params, directory / "tokenizer")


def _stages(run: Run, workdir: Path, choices: Choices, train: miniature.Train) -> None:
    directory = run.directory(workdir)
    stage, scale, seed, decoder = miniature.Stages(directory), choices.scale, run.seed, None
    if other := DECODER_OF.get(run.family):
        decoder = Run(other, seed, "base").directory(workdir) / "base" / "model"
        scale = dataclasses.replace(scale, base_steps=choices.adapting_steps)
    initial = (directory, run.family, seed, workdir / "common" / run.family, decoder)
    stage("initial weights", "initial", initial_model, *initial)
    miniature.base_stage(stage, scale, seed, train)
    if run.variant != "base":
        name, variant = run.variant, ROWS[run.variant].miniature
        assert variant
        made = (directory, run.family, seed, choices.localized)
        how = (scale.temperature, draws(run.family))
        stage("answers of the base", "answers.json", study_pairs.answer, *made, *how)
        source = (directory, variant.source, seed, choices)
        stage(f"{variant.source} pairs", f"{variant.source}_shards/manifest.json", pairs, *source)
        if variant.start == "stretched":
            stage("positions scaled", "stretched/model", stretch, directory)
            asked = (directory, run.family, "base_stretched", choices, "stretched")
            stage("evaluation of base_stretched", "base_stretched_answers.json", evaluate, *asked)
        place = directory / "tuned" / name
        config = variant_config(directory, name, choices, seed)
        stage(f"training of {name}", f"tuned/{name}/model", train, config, place)
    model = "base" if run.variant == "base" else f"tuned/{run.variant}"
    if (run.family, run.variant) in NEEDLES_OF:
        find = (directory, run.variant, model, seed, choices)
        stage(f"needles of {run.variant}", f"{run.variant}_needles.json", needles, *find)
    asked = (directory, run.family, run.variant, choices, model)
    stage(f"evaluation of {run.variant}", f"{run.variant}_answers.json", evaluate, *asked)


def needles(directory: Path, name: str, model: str, seed: int, choices: Choices) -> None:
    """Which needles a model finds."""
    found = study_needles.search(directory, model, seed, choices.lengths, choices.needles)
    write_json(directory / f"{name}_needles.json", found)


def pairs(directory: Path, source: str, seed: int, choices: Choices) -> None:
    """The shards of a source of pairs."""
    rows = read_json(directory / "answers.json")
    shares = (choices.flips, choices.slips)
    found = study_pairs.pairs_of(source, rows, seed, *shares, choices.scale.truth_filter)
    study_pairs.shards(directory, source, choices.pairs, found)


def check_workdir(workdir: Path, choices: Choices, *, make: bool = True) -> None:
    """Makes the directory unless it must be there.

    Raises:
        InputError: it holds results of other choices, or must be there and holds none.
    """
    path, ours = workdir / "choices.json", json.loads(json.dumps(dataclasses.asdict(choices)))
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
    todo: Sequence[Run], workdir: Path, choices: Choices, train: miniature.Train, workers: int
) -> None:
    """Carries out runs, in order but never two of one seed at a time.

    Args:
        todo: of these, those whose answers are not there.
        workdir: of all of them.
        choices: the same for all.
        train: as in `miniature.run`; importable by name where there are several workers.
        workers: processes.

    Raises:
        InputError: another process is at work on a seed.
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
        going: dict[concurrent.futures.Future, Run] = {}
        while waiting or going:
            busy = {run.seed for run in going.values()}
            for run in list(waiting):
                if len(going) < workers and run.seed not in busy:
                    waiting.remove(run)
                    busy.add(run.seed)
                    going[pool.submit(carry_out, run, workdir, choices, train)] = run
            done, _ = concurrent.futures.wait(going, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                del going[future]
                future.result()


@contextlib.contextmanager
def _alone(directory: Path, wait: bool = False) -> Iterator[None]:
    """Holds a directory, made if absent; where another process does, waits or raises InputError."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise InputError(f"{directory}: another run is at work there") from error
        yield


def _end_with_parent() -> None:
    """A worker whose parent was killed stops as if it were asked to, training after it has saved;
    left alone it would wait for work for ever.
    """
    if parent := multiprocessing.parent_process():
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os._exit(1)


def _cores() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def begin_worker(compiled: Path, cores: multiprocessing.Queue) -> None:
    """A worker has a core of its own, where the system can do that, and one device of one thread;
    threads that wander between cores take a third longer. Programs compiled once serve all.
    """
    os.environ["NPROC"], core = "1", cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_compilation_cache_dir", str(compiled))
