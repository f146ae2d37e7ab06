"""Benchmarks, asked and scored as lmms-eval does, and needles in a haystack of frames.

    python -m tpo_jax.evaluate run --benchmark=videomme --data=DIR --checkpoint=DIR --output=DIR
    python -m tpo_jax.evaluate score --benchmark=videomme --predictions=FILE.jsonl \\
        --output=FILE.jsonl
    python -m tpo_jax.evaluate niah --haystack=MOVIE --needles=dataset.json --checkpoint=DIR \\
        --output=DIR

`run` asks a model all questions of a benchmark in its published layout (`evaluation/benchmarks.py`)
and writes `results.json` and `samples.jsonl`, in lmms-eval's formats, into a folder. After a kill
the same command resumes; `answers.jsonl` holds the finished answers.

`score` scores stored predictions without a model: every line holds `doc`, the row of the benchmark,
and `prediction`; `extracted` and `score` are added.

`niah` puts needles into a movie, at every depth of every length of a grid, and writes the scores
and their heat map as LongVA's V-NIAH does; it resumes after a kill, too.

The aggregate goes to standard output as JSON. `python -m tpo_jax.evaluate run --help` lists the
flags of `run`.
"""

import dataclasses
import json
from typing import Any

from absl import flags

from tpo_jax.errors import InputError, Subcommand, run_command
from tpo_jax.evaluation import rescoring, runs, scorers
from tpo_jax.evaluation.lmms_models import LMMS_MODELS
from tpo_jax.inference.flags import define_model, define_prompts
from tpo_jax.io.paths import define_path, output_file
from tpo_jax.parallel.programs import keep_programs

# Every subcommand has flags of its own, read as attributes: `_RUN.num_frames`.
_RUN, _SCORE, _NIAH = flags.FlagValues(), flags.FlagValues(), flags.FlagValues()

for _values in (_RUN, _SCORE):
    _BENCHMARKS = list(scorers.SCORING_RULES)
    flags.DEFINE_enum("benchmark", None, _BENCHMARKS, "Name in lmms-eval.", _values, required=True)
    flags.DEFINE_enum(
        "scorer",
        scorers.ERAS[0],
        scorers.ERAS,
        "Rules of lmms-eval today, before 0.7.2, or at the paper's time.",
        _values,
    )
    flags.DEFINE_integer("seed", 0, "Of LongVideoBench's random guesses.", 0, flag_values=_values)
for _values in (_RUN, _NIAH):
    define_model(dtype="bfloat16", values=_values)
    define_path("output", None, "Folder of the results.", required=True, flag_values=_values)
    flags.DEFINE_bool(
        "allow_missing",
        False,
        "Continue without questions or needles whose files are missing or broken.",
        _values,
    )
    flags.DEFINE_integer(
        "batch_size",
        1,
        "Videos at a time, rounded up to a multiple of the devices that do not share one.",
        lower_bound=1,
        flag_values=_values,
    )

define_path(
    "data", None, "Folder of the benchmark, archives unpacked.", required=True, flag_values=_RUN
)
define_path(
    "videos",
    None,
    "Store that `prepare` made of --data, or another folder with its videos at the same paths. "
    "Default: --data.",
    flag_values=_RUN,
)
flags.DEFINE_integer(
    "num_frames",
    0,
    "Frames per video; 0: those of the paper, 128 or 96, or of --lmms_model.",
    0,
    flag_values=_RUN,
)
flags.DEFINE_enum(
    "lmms_model",
    "",
    ["", *LMMS_MODELS],
    "Ask as lmms-eval asks the model of this name: its prompt, frames and system message.",
    _RUN,
)
define_prompts(_RUN)
flags.DEFINE_integer("limit", 0, "Rows used; 0: all.", 0, flag_values=_RUN)

define_path("predictions", None, "JSON Lines file to read.", required=True, flag_values=_SCORE)
define_path("output", None, "JSON Lines file to write.", required=True, flag_values=_SCORE)

define_path(
    "haystack", None, "Any movie; one frame a second is used.", required=True, flag_values=_NIAH
)
define_path(
    "needles",
    None,
    "dataset.json with the images beside it, or the published .parquet.",
    required=True,
    flag_values=_NIAH,
)
flags.DEFINE_integer("min_frames", 200, "Shortest length.", 1, flag_values=_NIAH)
flags.DEFINE_integer("max_frames", 3000, "Longest length.", 1, flag_values=_NIAH)
flags.DEFINE_integer("frame_step", 200, "Between lengths.", 1, flag_values=_NIAH)
flags.DEFINE_float("depth_step", 0.2, "Between depths, 0 to 1.", 0.001, 1.0, flag_values=_NIAH)
flags.DEFINE_float(
    "rope_theta", 0.0, "Base of the rotary wavelengths; 0: the checkpoint's.", 0, flag_values=_NIAH
)
flags.DEFINE_integer(
    "context", 0, "Devices that share a video; 0: all that are left.", 0, flag_values=_NIAH
)
flags.DEFINE_integer("tensor", 1, "Devices that share the heads of a layer.", 1, flag_values=_NIAH)


def _settings(kind: type, values: flags.FlagValues) -> Any:
    """Return a dataclass whose fields are flags of a subcommand."""
    return kind(**{field.name: values[field.name].value for field in dataclasses.fields(kind)})


def run() -> None:
    """Ask a model, write the results and print the aggregate."""
    keep_programs(_RUN.compilation_cache)
    print(json.dumps(runs.run_benchmark(_settings(runs.BenchmarkRun, _RUN)), indent=2))


def score() -> None:
    """Score a file of predictions and print the aggregate."""
    scorer = scorers.Scorer(_SCORE.benchmark, _SCORE.scorer, _SCORE.seed)
    if not _SCORE.predictions.is_file():  # a device would be read for ever
        raise InputError(f"--predictions={_SCORE.predictions}: no such file")
    output = output_file(_SCORE.output)
    print(json.dumps(rescoring.rescore(scorer, _SCORE.predictions, output), indent=2))


def niah() -> None:
    """Look for the needles, write scores and heat map and print the aggregate."""
    keep_programs(_NIAH.compilation_cache)
    print(json.dumps(runs.find_needles(_settings(runs.NeedleRun, _NIAH)), indent=2))


COMMANDS = {
    "run": Subcommand(run, _RUN),
    "score": Subcommand(score, _SCORE),
    "niah": Subcommand(niah, _NIAH),
}

if __name__ == "__main__":
    run_command(COMMANDS)
