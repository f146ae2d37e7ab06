"""Benchmarks, asked and scored as lmms-eval does, and needles in a haystack of frames.

    python -m tpo_jax.evaluate run --benchmark=videomme --data=DIR --checkpoint=DIR --output=DIR
    python -m tpo_jax.evaluate score --benchmark=videomme --predictions=FILE.jsonl \\
        --output=FILE.jsonl
    python -m tpo_jax.evaluate niah --haystack=MOVIE --needles=dataset.json --checkpoint=DIR \\
        --output=DIR

`run` asks a model all questions of a benchmark in its published layout (`evaluation/benchmarks.py`)
and writes `results.json` and `samples.jsonl`, in lmms-eval's shapes, into a folder. Started again
after a kill it goes on; `answers.jsonl` holds what is answered.

`score` re-scores stored predictions without a model: every line holds `doc`, the row of the
benchmark, and `prediction`; `extracted` and `score` are added.

`niah` puts needles into a movie, at every depth of every length of a grid, and writes the scores
and their heat map as LongVA's V-NIAH does; it goes on after a kill, too.

The aggregate goes to standard output as JSON.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tokenizers import Tokenizer
from tqdm import tqdm

from tpo_jax import families
from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.checkpoints.models import load_config, load_model
from tpo_jax.data.processor import Processor
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, printable, run_command
from tpo_jax.evaluation import benchmarks, niah, niah_files, rescoring, results, runner, scorers
from tpo_jax.evaluation.journal import Journal
from tpo_jax.families.template import STYLES, TIME_INSTRUCTIONS
from tpo_jax.inference.generator import Generator
from tpo_jax.io.paths import define_path, output_file
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import check_heads

_BENCHMARK = flags.DEFINE_enum(
    "benchmark", None, list(scorers.BENCHMARKS), "run, score: lmms-eval's name."
)
define_path("output", None, "run, niah: folder of the results; score: JSON Lines file to write.")
_SCORER = flags.DEFINE_enum(
    "scorer", scorers.ERAS[0], scorers.ERAS, "Rules of lmms-eval today or at the paper's time."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of LongVideoBench's random guesses.", lower_bound=0)

_PREDICTIONS = define_path("predictions", None, "score: JSON Lines file to read.")

_CHECKPOINT = define_path("checkpoint", None, "run, niah: model directory.")
_DATA = define_path("data", None, "run: folder of the benchmark, archives unpacked.")
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", 0, "run: frames per video; 0: those of the paper, 128 or 96.", lower_bound=0
)
_TIME = flags.DEFINE_enum(
    "time_instruction",
    None,
    TIME_INSTRUCTIONS,
    "run: sentence on the frames' times; the paper's evaluation had none. Default: what the "
    "checkpoint asks for.",
)
_STYLE = flags.DEFINE_enum(
    "prompt_style",
    "inference",
    STYLES,
    "run: prompts of the original inference code, or those of the original DPO trainer.",
)
_LIMIT = flags.DEFINE_integer("limit", 0, "run: only the first so many rows.", lower_bound=0)
_ALLOW_MISSING = flags.DEFINE_bool(
    *("allow_missing", False),
    "run, niah: go on without questions or needles whose files are missing or broken.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    *("batch_size", 1),
    "run, niah: videos at a time, rounded up to a multiple of the devices that do not share one.",
    lower_bound=1,
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["float32", "bfloat16"], "run, niah: compute dtype."
)

_HAYSTACK = define_path("haystack", None, "niah: any movie, one frame a second is used.")
_NEEDLES = define_path(
    "needles", None, "niah: dataset.json with the images beside it, or the published .parquet."
)
_MIN_FRAMES = flags.DEFINE_integer("min_frames", 200, "niah: shortest length.", lower_bound=1)
_MAX_FRAMES = flags.DEFINE_integer("max_frames", 3000, "niah: longest length.", lower_bound=1)
_FRAME_STEP = flags.DEFINE_integer("frame_step", 200, "niah: between lengths.", lower_bound=1)
_DEPTH_STEP = flags.DEFINE_float("depth_step", 0.2, "niah: between depths, 0 to 1.", 0.001, 1.0)
_ROPE_THETA = flags.DEFINE_float(
    "rope_theta", 0.0, "niah: base of the rotary wavelengths; 0: the checkpoint's.", lower_bound=0.0
)
_CONTEXT = flags.DEFINE_integer(
    "context", 0, "niah: devices that share a video; 0: all that are left.", lower_bound=0
)
_TENSOR = flags.DEFINE_integer(
    "tensor", 1, "niah: devices that share the heads of a layer.", lower_bound=1
)


def _given(name: str) -> str:
    """The value of a flag that this command needs."""
    if not (value := flags.FLAGS[name].value):
        raise InputError(f"flag --{name} must have a value")
    return value


def score() -> None:
    """Scores a file of predictions and prints the aggregate."""
    scorer = scorers.Scorer(_given("benchmark"), _SCORER.value, _SEED.value)
    predictions, output = Path(_given("predictions")), output_file(_given("output"))
    if not predictions.is_file():  # a device would be read for ever
        raise InputError(f"--predictions={predictions}: no such file")
    summary = rescoring.rescore(scorer, predictions, output)
    print(json.dumps(summary, indent=2))


def _report(problems: list[str], total: int, what: str = "questions") -> None:
    """Says which questions cannot be asked; raises unless they may be missing."""
    if not problems:
        return
    text = f"{len(problems)} of {total} {what} cannot be asked: {problems[0]}"
    if not _ALLOW_MISSING.value:
        raise InputError(f"{text}; --allow_missing goes on without them")
    for problem in problems:
        print(f"missing: {printable(problem)}", file=sys.stderr)


def _output_folder() -> Path:
    folder = Path(_given("output"))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output={folder}: not a folder")
    return folder


def _highest(dtype: str):
    """Matrix products of float32 are computed in float32."""
    return jax.default_matmul_precision("highest" if dtype == "float32" else "default")


def _identity(config: ModelConfig, params: dict, tokenizer: Tokenizer) -> dict[str, Any]:
    """What answers depend on besides the questions, as JSON would give it back."""
    return {
        "weights": weights_fingerprint(params),
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "model_config": json.loads(json.dumps(dataclasses.asdict(config))),
        "dtype": _DTYPE.value,
    }


def run() -> None:
    """Asks the model, writes the results and prints the aggregate."""
    began, name, folder = time.perf_counter(), _given("benchmark"), _output_folder()
    checkpoint = Path(_given("checkpoint"))
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint, config)
    questions, problems = benchmarks.ask(Path(_given("data")), name, _SCORER.value, _LIMIT.value)
    total = len(questions) + len(problems)
    _report(problems, total)
    if not questions:
        raise InputError(f"--data={_DATA.value}: no question of {name} can be asked")
    spec = benchmarks.BENCHMARKS[name]
    if spec.interleaved and (_NUM_FRAMES.value or _TIME.value not in (None, "none")):
        raise InputError(
            f"--num_frames, --time_instruction: {name} has its own frames and their times"
        )
    mode = "none" if spec.interleaved else _TIME.value or config.time_instruction
    num_frames = _NUM_FRAMES.value or families.of(config).benchmark_frames(config).get(
        str(_BENCHMARK.value), spec.num_frames
    )

    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    loaded = load_model(checkpoint, mesh=mesh, dtype=_DTYPE.value)
    settings = {
        "benchmark": name,
        **_identity(config, loaded.params, tokenizer),
        "num_frames": num_frames,
        "time_instruction": mode,
        "prompt_style": _STYLE.value,
    }
    generator = Generator(
        config,
        loaded.params,
        tokenizer,
        max_new_tokens=spec.max_new_tokens,
        batch_rows=_BATCH_SIZE.value,
        mesh=mesh,
        question_multiple=runner.PROMPT_MULTIPLE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with (
        Journal(folder / "answers.jsonl", settings) as journal,
        _highest(_DTYPE.value),
    ):
        open_ = [q for q in questions if journal.answer(q.doc_id, q.prompt) is None]
        processor = Processor(config, tokenizer, mode, _STYLE.value)
        groups = runner.make_groups(open_, processor)
        read = runner.make_reader(processor, num_frames)
        done = len(questions) - len(open_)
        with tqdm(total=len(questions), initial=done, unit="question", desc=name) as progress:
            for rows, unread in runner.answer(groups, read, generator):
                journal.keep(rows)
                progress.update(len(rows) + len(unread))
                _report(unread, total)
                problems += unread
        answered = [
            (question, text)
            for question in questions
            if (text := journal.answer(question.doc_id, question.prompt)) is not None
        ]
    scorer = scorers.Scorer(name, _SCORER.value, _SEED.value)
    settings |= {"pretrained": str(checkpoint), "scorer": _SCORER.value, "seed": _SEED.value}
    seconds = time.perf_counter() - began
    summary = results.write_results(folder, scorer, answered, settings, problems, seconds)
    print(json.dumps(summary, indent=2))


def search() -> None:
    """Looks for the needles, writes scores and heat map and prints the aggregate."""
    folder, movie, file = _output_folder(), Path(_given("haystack")), Path(_given("needles"))
    lengths = list(range(_MIN_FRAMES.value, _MAX_FRAMES.value + 1, _FRAME_STEP.value))
    if not lengths:
        raise InputError(f"--min_frames={_MIN_FRAMES.value} is above --max_frames")
    for name, value in (("depth_step", _DEPTH_STEP.value), ("rope_theta", _ROPE_THETA.value)):
        if not math.isfinite(value):
            raise InputError(f"--{name}={value} must be a number")
    depths = niah.depths(_DEPTH_STEP.value)
    checkpoint = Path(_given("checkpoint"))
    theta = {"rope_theta": _ROPE_THETA.value} if _ROPE_THETA.value else {}
    config = load_config(checkpoint, **theta)
    tokenizer = load_tokenizer(checkpoint, config)
    asked, problems = niah_files.read_needles(file, config, tokenizer)
    _report(problems, len(asked) + len(problems), "needles")
    if not asked:
        raise InputError(f"--needles={file}: no needle can be asked for")
    frames = niah_files.read_haystack(movie, lengths[-1], config)

    sizes = {"data": 1, "tensor": _TENSOR.value, "context": _CONTEXT.value or -1}
    mesh = make_mesh(sizes | {"fsdp": -1 if _CONTEXT.value else 1})
    check_heads(config.decoder.heads, config.decoder.kv_heads, mesh)
    params = load_model(checkpoint, mesh=mesh, dtype=_DTYPE.value).params
    with movie.open("rb") as opened:
        haystack = hashlib.file_digest(opened, "sha256").hexdigest()
    settings = {"haystack": haystack, **_identity(config, params, tokenizer)}
    needles = [needle for _, needle in asked]
    product = itertools.product(lengths, depths, range(len(needles)))
    cells = [niah.Cell(*values) for values in product]
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key for key, _ in asked]
    with (
        niah_files.Journal(folder / "cells.jsonl", settings, keys) as journal,
        _highest(_DTYPE.value),
    ):
        open_ = [cell for cell in cells if journal.result(cell) is None]
        done = len(cells) - len(open_)
        how = (tokenizer, frames, needles, open_, mesh, _BATCH_SIZE.value)
        with tqdm(total=len(cells), initial=done, unit="cell", desc="niah") as progress:
            for results in niah.find(config, params, *how):
                journal.keep(results)
                progress.update(len(results))
        found = np.array([journal.result(cell) for cell in cells], float)
    found = found.reshape(len(lengths), len(depths), len(needles))
    summary = niah.summary(found, lengths, depths)
    if problems:
        summary |= {"partial": True, "missing": len(problems), "missing_first": problems[:10]}
    niah_files.write_results(folder, found.mean(axis=2), lengths, depths, summary)
    print(json.dumps(summary, indent=2))


COMMANDS = {"run": run, "score": score, "niah": search}

if __name__ == "__main__":
    run_command(COMMANDS)
