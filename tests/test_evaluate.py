"""The evaluate door: stored predictions."""

import json

import pytest

from tests.doors import call
from tests.evaluation.agreement import generate, make_docs
from tpo_jax.evaluation.scorers import Scorer


@pytest.fixture
def predictions(tmp_path):
    """A file of forty predictions, blank lines and other fields in it."""
    rows = [
        {"doc": doc, "prediction": text, "model": "m"}
        for doc, text in zip(make_docs("videomme", 0, 40), generate(0, 40), strict=True)
    ]
    rows[3]["prediction"] = None
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path, rows


def test_score(predictions, tmp_path) -> None:
    path, rows = predictions
    flags = {"benchmark": "videomme", "predictions": path}
    today, before = call(
        "evaluate",
        flags | {"output": tmp_path / "today.jsonl"},
        flags | {"output": tmp_path / "before.jsonl", "scorer": "paper_era"},
        command="score",
    )
    for result, name, era in (
        (today, "today", "lmms_eval_0.7"),
        (before, "before", "paper_era"),
    ):
        assert result.code == 0, result.err
        scorer = Scorer("videomme", era)
        verdicts = [scorer.judge(row["doc"], row["prediction"]) for row in rows]
        lines = [json.loads(x) for x in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert lines == [
            row | {"extracted": verdict.extracted, "score": verdict.score}
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
        assert json.loads(result.out) == scorer.summary([row["doc"] for row in rows], verdicts)
    assert today.out != before.out


def test_wrong_input_of_score(predictions, tmp_path) -> None:
    path, rows = predictions
    broken = {
        "cut": '{"doc": {',
        "list": "[1]",
        "no doc": '{"prediction": "A"}',
        "no prediction": '{"doc": {}}',
        "number": '{"doc": {}, "prediction": 3}',
        "no answer": '{"doc": {}, "prediction": "A"}',
    }
    flags = {"benchmark": "videomme", "predictions": path, "output": tmp_path / "out.jsonl"}
    calls, messages = [], []
    for name, line in broken.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(rows[0]) + f"\n{line}\n")
        calls.append(flags | {"predictions": file})
        messages.append(f"{file}:2: ")
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, value, message in (
        ("predictions", tmp_path / "empty.jsonl", "no prediction"),
        ("predictions", tmp_path / "nothing.jsonl", "nothing.jsonl"),
        ("benchmark", "mlvu", "videomme|"),
        ("scorer", "old", "paper_era"),
        ("output", tmp_path / "no/where.jsonl", "no such directory"),
    ):
        calls.append(flags | {name: value})
        messages.append(message)
    results = call("evaluate", *calls, command="score")
    for result, message in zip(results, messages, strict=True):
        assert (result.code, result.out) == (2, "")
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not list(tmp_path.glob("*out.jsonl*")) and not list(tmp_path.glob(".*"))
    (unknown,) = call("evaluate", flags, command="sore")
    assert unknown.code == 2 and "score" in unknown.err
