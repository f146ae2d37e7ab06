"""Scores of stored predictions; no model is needed."""

import json
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.evaluation.benchmarks import complete
from tpo_jax.evaluation.scorers import Scorer
from tpo_jax.io.files import read_lines, replacing


def rescore(scorer: Scorer, predictions: Path, output: Path) -> dict[str, Any]:
    """Score a file of predictions and return the scorer's summary.

    Args:
        predictions: JSON Lines; `doc`, the row of the benchmark, and `prediction`, a text.
        output: JSON Lines file to write: the same lines in the same order, with `extracted` and
            `score` added.

    Raises:
        InputError: a line that cannot be scored; the message names it, and nothing is written.
    """
    docs, verdicts = [], []
    with replacing(output) as file:
        for where, line in read_lines(predictions):
            doc, prediction = line.get("doc"), line.get("prediction", 0)
            if not isinstance(doc, dict):
                raise InputError(f"{where}: 'doc' must be an object")
            if not isinstance(prediction, str | None):
                raise InputError(f"{where}: 'prediction' must be a text")
            try:
                verdict = scorer.judge(complete(doc), prediction)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            added = {"extracted": verdict.extracted, "score": verdict.score}
            try:
                file.write(json.dumps(line | added, allow_nan=False) + "\n")
            except ValueError as error:
                raise InputError(f"{where}: NaN and infinity are not JSON") from error
            docs.append(doc)
            verdicts.append(verdict)
        try:
            return scorer.summary(docs, verdicts)
        except InputError as error:
            raise InputError(f"{predictions}: {error}") from error
