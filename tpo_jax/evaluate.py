"""Benchmarks, scored as lmms-eval scores them.

    python -m tpo_jax.evaluate score --benchmark=videomme --predictions=FILE.jsonl \\
        --output=FILE.jsonl

`score` re-scores stored predictions without a model: every line holds `doc`, the row of the
benchmark, and `prediction`; `extracted` and `score` are added. The aggregate goes to standard
output as JSON.
"""

import json
from pathlib import Path

from absl import flags

from tpo_jax.errors import InputError, run_door
from tpo_jax.evaluation import rescoring, scorers

_BENCHMARK = flags.DEFINE_enum(
    "benchmark", None, list(scorers.BENCHMARKS), "lmms-eval's name.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "score: JSON Lines file to write.", required=True)
_SCORER = flags.DEFINE_enum(
    "scorer", scorers.ERAS[0], scorers.ERAS, "Rules of lmms-eval today or at the paper's time."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of LongVideoBench's random guesses.", lower_bound=0)

_PREDICTIONS = flags.DEFINE_string("predictions", None, "score: JSON Lines file to read.")


def score() -> None:
    """Scores a file of predictions and prints the aggregate."""
    if _PREDICTIONS.value is None:
        raise InputError("--predictions is missing: the file to score")
    scorer = scorers.Scorer(_BENCHMARK.value, _SCORER.value, _SEED.value)
    summary = rescoring.rescore(scorer, Path(_PREDICTIONS.value), Path(_OUTPUT.value))
    print(json.dumps(summary, indent=2))


COMMANDS = {"score": score}

if __name__ == "__main__":
    run_door(COMMANDS)
