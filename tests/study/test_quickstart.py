"""The quickstart from rendering to the report, in its smallest size."""

import json
import re
from pathlib import Path

import pytest

from tpo_jax.study import quickstart
from tpo_jax.study.sources import ASKED_OF_IT, FORGOTTEN
from tpo_jax.study.stages import LONG_SECONDS, SCALES, videos_of
from tpo_jax.study.statistics import exact

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_every_stage_runs_and_a_second_start_redoes_nothing(smoke_quickstart, capsys):
    workdir, out = smoke_quickstart
    assert out.startswith("# Quickstart") and "95 % interval" in out
    assert (workdir / "report.html").read_text().count("data:image/png;base64,") == 4
    # README's first lines of Python load and show what the quickstart leaves.
    named = re.findall(r'"quickstart/([^"]+)"', (ROOT / "README.md").read_text())
    assert len(named) == 2 and all((workdir / name).exists() for name in named)

    answers = json.loads((workdir / "tpo_answers.json").read_text())
    scale = SCALES["smoke"]
    settings = {(row["seconds"], row["frames"]) for row in answers}
    assert settings == {(LONG_SECONDS, frames) for frames in (0, *scale.frames)}
    assert all(row["right"] == exact(row["answer"], row["truth"]) for row in answers)

    made = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    page = quickstart.run(workdir, scale, seed=11, train=lambda *_: pytest.fail("trains again"))
    assert f"{capsys.readouterr().out}\nReport with plots: {page}\n" == out
    changed = {p.name for p, then in made.items() if p.stat().st_mtime_ns != then}
    plots = {"frames.png", "lengths.png", "types.png", "training.png"}
    assert changed <= {"report.html", "report.md"} | plots


def test_replay_asks_first_how_short_videos_start_and_end(smoke_quickstart):
    workdir, _ = smoke_quickstart
    lines = (workdir / "replay.jsonl").read_text().splitlines()
    replayed = [(pair["video"], pair["prompt"]) for pair in map(json.loads, lines)]
    for video in videos_of(workdir, "short")[: SCALES["smoke"].replay_videos]:
        ends = [q.text for q in video.questions if (q.type, q.kind) == FORGOTTEN]
        asked = [text for name, text in replayed if name == Path(video.path).name]
        assert asked[: len(ends[:ASKED_OF_IT])] == ends[:ASKED_OF_IT]
