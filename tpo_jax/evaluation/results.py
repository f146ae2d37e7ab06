"""Files of a run in lmms-eval's formats: `results.json` and `samples.jsonl`."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo_jax.evaluation import extraction
from tpo_jax.evaluation.benchmarks import BENCHMARKS, Question
from tpo_jax.evaluation.scorers import Scorer
from tpo_jax.evaluation.verdicts import TODAY, Verdict
from tpo_jax.io.files import write_json, write_lines


def write_results(
    folder: Path,
    scorer: Scorer,
    answered: Sequence[tuple[Question, str]],
    settings: dict[str, Any],
    problems: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Score the answers and write both files.

    Args:
        answered: questions and answers, in the order of the benchmark.
        settings: of the run, for `config`.
        problems: one line per question that could not be asked; with any, the score is partial.

    Returns:
        `Scorer.summary`, and with problems `partial`, `missing` and the first of them.
    """
    target = BENCHMARKS[scorer.benchmark].target
    verdicts, lines = [], []
    for question, raw in answered:
        # The command line of lmms-eval has removed tagged reasoning since 0.7.
        text = extraction.without_reasoning(raw) if scorer.era == TODAY else raw
        verdicts.append(scorer.judge(question.doc, text))
        lines.append(_sample(question, raw, text, verdicts[-1], target))
    summary = scorer.summary([question.doc for question, _ in answered], verdicts)
    if problems:
        summary |= {"partial": True, "missing": len(problems), "missing_first": problems[:10]}
    counts = {"original": len(answered) + len(problems), "effective": len(answered)}
    results = _contents(scorer, settings, summary, counts, seconds)
    write_lines(folder / "samples.jsonl", lines)
    write_json(folder / "results.json", results)
    return summary


def _contents(
    scorer: Scorer,
    settings: dict[str, Any],
    summary: dict[str, Any],
    counts: dict[str, int],
    seconds: float,
) -> dict[str, Any]:
    benchmark, spec = scorer.benchmark, BENCHMARKS[scorer.benchmark]
    metrics = [name for name in summary["results"][benchmark] if name.endswith(",none")]
    return {
        "results": summary["results"],
        "group_subtasks": {benchmark: []},
        "configs": {
            benchmark: {
                "task": benchmark,
                "test_split": spec.split,
                "output_type": "generate_until",
                "generation_kwargs": {
                    "max_new_tokens": spec.max_new_tokens,
                    "temperature": 0.0,
                    "do_sample": False,
                },
            }
        },
        "versions": {benchmark: "Yaml"},
        "n-shot": {benchmark: 0},
        "higher_is_better": {
            benchmark: {name[:-5]: True for name in metrics if "_stderr" not in name}
        },
        "n-samples": {benchmark: counts},
        "config": {"model": "tpo_jax", **settings},
        "date": time.strftime("%Y%m%d_%H%M%S"),
        "model_source": "tpo_jax",
        "model_name": settings["pretrained"],
        "model_name_sanitized": settings["pretrained"].replace("/", "__"),
        "total_evaluation_time_seconds": str(seconds),
        "tpo_jax": {name: value for name, value in summary.items() if name != "results"},
    }


def _sample(question: Question, raw: str, text: str, verdict: Verdict, target: str) -> dict:
    doc = json.dumps(question.doc, default=str, sort_keys=True)
    return {
        "doc_id": question.doc_id,
        "target": str(question.doc[target]),
        **({} if raw == text else {"resps": raw}),
        "filtered_resps": text,
        "token_counts": [None],
        "doc_hash": hashlib.sha256(doc.encode()).hexdigest(),
        **verdict.metrics,
        "input": question.prompt,
    }
