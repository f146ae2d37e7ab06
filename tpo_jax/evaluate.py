"""Benchmarks, asked and scored as lmms-eval does.

    python -m tpo_jax.evaluate run --benchmark=videomme --data=DIR --checkpoint=DIR --output=DIR
    python -m tpo_jax.evaluate score --benchmark=videomme --predictions=FILE.jsonl \\
        --output=FILE.jsonl

`run` asks a model all questions of a benchmark in its published layout (`evaluation/benchmarks.py`)
and writes `results.json` and `samples.jsonl`, in lmms-eval's shapes, into a folder. Started again
after a kill it goes on; `answers.jsonl` holds what is answered.

`score` re-scores stored predictions without a model: every line holds `doc`, the row of the
benchmark, and `prediction`; `extracted` and `score` are added.

The aggregate goes to standard output as JSON.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from tpo_jax.checkpoints.models import load_config, load_model
from tpo_jax.data import prompts
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, run_door
from tpo_jax.evaluation import benchmarks, rescoring, results, runner, scorers
from tpo_jax.evaluation.journal import Journal
from tpo_jax.generation.generator import Generator
from tpo_jax.models.config import to_dict
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.training.reference import weights_fingerprint

_BENCHMARK = flags.DEFINE_enum(
    "benchmark", None, list(scorers.BENCHMARKS), "lmms-eval's name.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "run: folder of the results; score: JSON Lines file to write.", required=True
)
_SCORER = flags.DEFINE_enum(
    "scorer", scorers.ERAS[0], scorers.ERAS, "Rules of lmms-eval today or at the paper's time."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of LongVideoBench's random guesses.", lower_bound=0)

_PREDICTIONS = flags.DEFINE_string("predictions", None, "score: JSON Lines file to read.")

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run: model directory.")
_DATA = flags.DEFINE_string("data", None, "run: folder of the benchmark, archives unpacked.")
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", 0, "run: frames per video; 0: those of the paper, 128 or 96.", lower_bound=0
)
_TIME = flags.DEFINE_enum(
    "time_instruction",
    None,
    prompts.TIME_INSTRUCTIONS,
    "run: sentence on the frames' times; the paper's evaluation had none. Default: what the "
    "checkpoint asks for.",
)
_STYLE = flags.DEFINE_enum(
    "prompt_style",
    "inference",
    prompts.STYLES,
    "run: prompts of the original inference code, or those of the original DPO trainer.",
)
_LIMIT = flags.DEFINE_integer("limit", 0, "run: only the first so many rows.", lower_bound=0)
_ALLOW_MISSING = flags.DEFINE_bool(
    "allow_missing", False, "run: go on without questions whose files are missing or broken."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1, "run: videos at a time, rounded up to a multiple of the devices.", 1
)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "run: compute dtype.")


def _given(name: str) -> Path:
    """The value of a flag that this command needs."""
    if not (value := flags.FLAGS[name].value):
        raise InputError(f"flag --{name} must have a value")
    return Path(value)


def score() -> None:
    """Scores a file of predictions and prints the aggregate."""
    scorer = scorers.Scorer(_BENCHMARK.value, _SCORER.value, _SEED.value)
    summary = rescoring.rescore(scorer, _given("predictions"), Path(_OUTPUT.value))
    print(json.dumps(summary, indent=2))


def _report(problems: list[str], total: int) -> None:
    """Says which questions cannot be asked; raises unless they may be missing."""
    if not problems:
        return
    text = f"{len(problems)} of {total} questions cannot be asked: {problems[0]}"
    if not _ALLOW_MISSING.value:
        raise InputError(f"{text}; --allow_missing goes on without them")
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)


def run() -> None:
    """Asks the model, writes the results and prints the aggregate."""
    began, name, folder = time.perf_counter(), _BENCHMARK.value, Path(_OUTPUT.value)
    checkpoint = _given("checkpoint")
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint, config.decoder.vocab_size)
    questions, problems = benchmarks.ask(_given("data"), name, _SCORER.value, _LIMIT.value)
    total = len(questions) + len(problems)
    _report(problems, total)
    if not questions:
        raise InputError(f"--data={_DATA.value}: no question of {name} can be asked")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output={folder}: not a folder")
    spec = benchmarks.BENCHMARKS[name]
    if spec.interleaved and (_NUM_FRAMES.value or _TIME.value not in (None, "none")):
        raise InputError(
            f"--num_frames, --time_instruction: {name} has its own frames and their times"
        )
    mode = "none" if spec.interleaved else _TIME.value or config.time_instruction
    num_frames = _NUM_FRAMES.value or spec.num_frames[config.tower.kind == "siglip"]

    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    loaded = load_model(checkpoint, mesh=mesh, dtype=_DTYPE.value)
    settings = {
        "benchmark": name,
        "weights": weights_fingerprint(loaded.params),
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "model_config": to_dict(config),
        "num_frames": num_frames,
        "time_instruction": mode,
        "prompt_style": _STYLE.value,
        "dtype": _DTYPE.value,
    }
    settings = json.loads(json.dumps(settings))
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
        jax.default_matmul_precision("highest" if _DTYPE.value == "float32" else "default"),
    ):
        open_ = [q for q in questions if journal.answer(q.doc_id, q.prompt) is None]
        groups = runner.make_groups(open_, tokenizer)
        read = runner.make_reader(config, tokenizer, num_frames, mode, _STYLE.value)
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


COMMANDS = {"run": run, "score": score}

if __name__ == "__main__":
    run_door(COMMANDS)
