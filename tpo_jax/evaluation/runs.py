"""Whole runs: a benchmark's questions, or needles in a haystack, asked and written to a folder.

Both resume after a kill: finished answers are in a journal in the output folder.
"""

import dataclasses
import hashlib
import itertools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tpo_jax import families
from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.data.processor import Processor
from tpo_jax.errors import InputError, printable
from tpo_jax.evaluation import benchmarks, niah, niah_cells, niah_files, results, runner, scorers
from tpo_jax.evaluation.journal import AnswerJournal
from tpo_jax.evaluation.lmms_models import LMMS_MODELS
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import Model, load, load_processor
from tpo_jax.models.config import key_of


@dataclasses.dataclass(frozen=True)
class BenchmarkRun:
    """A benchmark, a model and how it is asked; the fields are flags of `evaluate run`."""

    benchmark: str
    data: Path
    videos: Path | None  # folder of the videos, or a store of them; None: `data`
    checkpoint: Path
    tower: Path | None  # for a checkpoint without its vision tower
    adapters: Path | None  # merged into its weights
    output: Path
    scorer: str
    seed: int
    lmms_model: str  # one of `lmms_models.LMMS_MODELS`, asked as there; empty: none
    num_frames: int  # 0: those of the paper, or of `lmms_model`
    time_instruction: str | None  # None: what the checkpoint asks for
    prompt_style: str
    limit: int  # rows; 0: all
    allow_missing: bool
    batch_size: int
    dtype: str
    weights: str  # see `tpo_jax.load`


@dataclasses.dataclass(frozen=True)
class NeedleRun:
    """A grid of needles in a movie; the fields are flags of `evaluate niah`."""

    haystack: Path
    needles: Path
    checkpoint: Path
    tower: Path | None  # for a checkpoint without its vision tower
    adapters: Path | None  # merged into its weights
    output: Path
    min_frames: int
    max_frames: int
    frame_step: int
    depth_step: float
    rope_theta: float  # 0: the checkpoint's
    context: int  # devices that share a cell; 0: all that are left
    tensor: int
    allow_missing: bool
    batch_size: int
    dtype: str
    weights: str  # see `tpo_jax.load`


def run_benchmark(run: BenchmarkRun) -> dict[str, Any]:
    """Ask a model the questions of a benchmark, write the results and return the summary.

    Raises:
        InputError: wrong settings or data, before any weights are read.
    """
    began, name, folder = time.perf_counter(), run.benchmark, _output_folder(run.output)
    spec = benchmarks.BENCHMARKS[name]
    if spec.interleaved and (run.num_frames or run.time_instruction not in (None, "none")):
        raise InputError(
            f"--num_frames, --time_instruction: {name} has its own frames and their times"
        )
    if spec.interleaved and run.lmms_model:
        raise InputError(f"--lmms_model={run.lmms_model}: {name} is asked as lmms-eval asks LongVA")
    mode = "none" if spec.interleaved else run.time_instruction
    processor = load_processor(
        run.checkpoint, time_instruction=mode, prompt_style=run.prompt_style, tower=run.tower
    )
    questions, problems = benchmarks.ask(
        run.data, name, run.scorer, run.limit, run.videos, run.lmms_model
    )
    total = len(questions) + len(problems)
    _report_missing(problems, total, "questions", run.allow_missing)
    if not questions:
        raise InputError(f"--data={run.data}: no question of {name} can be asked")
    own = families.of(processor.config).benchmark_frames(processor.config)
    num_frames = run.num_frames or own.get(name, spec.num_frames)
    if lmms := LMMS_MODELS.get(run.lmms_model):
        num_frames = run.num_frames or lmms.num_frames
    model = _load(run, {"fsdp": -1}, processor)
    settings = {
        "benchmark": name,
        **_identity(model, run.dtype),
        "num_frames": num_frames,
        "time_instruction": processor.time_instruction,
        "prompt_style": run.prompt_style,
    }
    if lmms:
        settings["lmms_model"] = run.lmms_model
    decoding = Decoding(
        spec.max_new_tokens,
        batch_rows=run.batch_size,
        question_multiple=runner.PROMPT_MULTIPLE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with AnswerJournal(folder / "answers.jsonl", settings) as journal:
        waiting = [q for q in questions if journal.answer(q.doc_id, q.prompt) is None]
        groups = runner.make_groups(waiting, processor)
        asked = {"rule": lmms.rule, "system": lmms.system} if lmms else {}
        read = runner.make_reader(processor, num_frames, **asked)
        done = len(questions) - len(waiting)
        with tqdm(total=len(questions), initial=done, unit="question", desc=name) as progress:
            for rows, unread in runner.answer(groups, read, model.generator(decoding)):
                journal.keep(rows)
                progress.update(len(rows) + len(unread))
                _report_missing(unread, total, "questions", run.allow_missing)
                problems += unread
        answers = [(q, journal.answer(q.doc_id, q.prompt)) for q in questions]
    answered = [(question, text) for question, text in answers if text is not None]
    scorer = scorers.Scorer(name, run.scorer, run.seed)
    pretrained = " + ".join(str(path) for path in (run.checkpoint, run.adapters) if path)
    settings |= {"pretrained": pretrained, "scorer": run.scorer, "seed": run.seed}
    seconds = time.perf_counter() - began
    return results.write_results(folder, scorer, answered, settings, problems, seconds)


def find_needles(run: NeedleRun) -> dict[str, Any]:
    """Test every cell of a grid, write scores and heat map and return the summary.

    Raises:
        InputError: wrong settings or files, before any weights are read.
    """
    folder = _output_folder(run.output)
    lengths = list(range(run.min_frames, run.max_frames + 1, run.frame_step))
    if not lengths:
        raise InputError(f"--min_frames={run.min_frames} is above --max_frames")
    for name, value in (("depth_step", run.depth_step), ("rope_theta", run.rope_theta)):
        if not math.isfinite(value):
            raise InputError(f"--{name}={value} must be a number")
    for name, path in (("haystack", run.haystack), ("needles", run.needles)):
        if not path.exists():
            raise InputError(f"--{name}={path}: no such file")
    depths = niah_cells.depths(run.depth_step)
    processor = load_processor(run.checkpoint, rope_theta=run.rope_theta, tower=run.tower)
    asked, problems = niah_files.read_needles(run.needles, processor)
    total = len(asked) + len(problems)
    _report_missing(problems, total, "needles", run.allow_missing)
    if not asked:
        raise InputError(f"--needles={run.needles}: no needle can be asked for")
    frames = niah_files.read_haystack(run.haystack, lengths[-1], processor)

    mesh = {"tensor": run.tensor, "context": run.context or -1, "fsdp": -1 if run.context else 1}
    model = _load(run, mesh, processor)
    with run.haystack.open("rb") as opened:
        haystack = hashlib.file_digest(opened, "sha256").hexdigest()
    settings = {"haystack": haystack, **_identity(model, run.dtype)}
    needles = [needle for _, needle in asked]
    product = itertools.product(lengths, depths, range(len(needles)))
    cells = [niah_cells.Cell(*values) for values in product]
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key for key, _ in asked]
    with niah_files.CellJournal(folder / "cells.jsonl", settings, keys) as journal:
        waiting = [cell for cell in cells if journal.result(cell) is None]
        done = len(cells) - len(waiting)
        with tqdm(total=len(cells), initial=done, unit="cell", desc="niah") as progress:
            for part in niah.find(model, frames, needles, waiting, run.batch_size):
                journal.keep(part)
                progress.update(len(part))
        found = np.array([journal.result(cell) for cell in cells], float)
    found = found.reshape(len(lengths), len(depths), len(needles))
    summary = niah.summary(found, lengths, depths)
    if problems:
        summary |= {"partial": True, "missing": len(problems), "missing_first": problems[:10]}
    niah_files.write_results(folder, found.mean(axis=2), lengths, depths, summary)
    return summary


def _load(run: BenchmarkRun | NeedleRun, mesh: dict[str, int], processor: Processor) -> Model:
    return load(
        run.checkpoint,
        dtype=run.dtype,
        mesh=mesh,
        processor=processor,
        tower=run.tower,
        adapters=run.adapters,
        weights=run.weights,
    )


def _report_missing(problems: Sequence[str], total: int, what: str, allow_missing: bool) -> None:
    """Print which questions or needles cannot be asked; raise unless they may be missing."""
    if not problems:
        return
    text = f"{len(problems)} of {total} {what} cannot be asked: {problems[0]}"
    if not allow_missing:
        raise InputError(f"{text}; --allow_missing continues without them")
    for problem in problems:
        print(f"missing: {printable(problem)}", file=sys.stderr)


def _output_folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output={folder}: not a folder")
    return folder


def _identity(model: Model, dtype: str) -> dict[str, Any]:
    """Return what answers depend on besides the questions, as JSON would give it back."""
    return {
        "weights": weights_fingerprint(model.params),
        "tokenizer": hashlib.sha256(model.tokenizer.to_str().encode()).hexdigest(),
        "model_config": key_of(model.config),
        "dtype": dtype,
    }
