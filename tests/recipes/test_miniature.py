"""The quickstart from rendering to the report, in its smallest size."""

import json

import pytest

from tpo_jax.evaluation.scoring import exact
from tpo_jax.recipes import miniature
from tpo_jax.train import train

pytestmark = pytest.mark.slow


def test_every_stage_runs_and_a_second_start_redoes_nothing(tmp_path, capsys):
    scale = miniature.SCALES["smoke"]
    page = miniature.run(tmp_path, scale, 3, train)
    assert page.read_text().count("data:image/png;base64,") == 4
    assert "95 % interval" in capsys.readouterr().out

    answers = json.loads((tmp_path / "tpo_answers.json").read_text())
    questions = scale.eval_videos * 8
    asked = len(scale.frames) + 1 + len([s for s in scale.lengths if s != miniature.LONG_SECONDS])
    assert len(answers) <= questions * asked
    assert all(row["right"] == exact(row["answer"], row["truth"]) for row in answers)

    made = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    def never(*_):
        raise AssertionError("nothing is left to train")

    again = miniature.run(tmp_path, scale, 3, never)
    changed = {p.name for p, then in made.items() if p.stat().st_mtime_ns != then}
    plots = {"frames.png", "lengths.png", "types.png", "training.png"}
    assert again == page and changed <= {"report.html", "report.md"} | plots
