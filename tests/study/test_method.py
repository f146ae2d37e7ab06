"""The pages on the method: rows, tables, corrected comparisons, pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call
from tpo_jax.errors import InputError
from tpo_jax.study import pages, pictures, settings
from tpo_jax.study.items import METHOD
from tpo_jax.study.records import Candidate, StudyRun, write_rows
from tpo_jax.study.rows import NOISY, PARTLY, ROWS, rounds_before
from tpo_jax.study.runs import check_workdir
from tpo_jax.study.stages import SCALES
from tpo_jax.study.statistics import holm, paired, t_interval
from tpo_jax.training.experiment import read

FAMILY = "tiny_longva"
SEEDS = (1, 2, 3, 4)
FRAMES = (8, 16, 32, 48, 64, 96)
SHORT = (36, "action")
# Points above the base at 32 frames; every other row as the base.
ABOVE = {"tpo": 8, "best": 12, "sft_self": 8, "dpo": 4, "dpo_partly": 6, "tpo_judge_30": 2}


def answers(row: str, seed: int) -> list[dict]:
    """Return a row's answers: the base falls with the frames, and what is above it does so less."""
    rng = np.random.default_rng([seed, len(row)])
    found = []
    for seconds, frames in [(96, n) for n in FRAMES] + [(36, 12), (96, 0)]:
        for index in range(100):
            kind = ("localized", "comprehensive")[index % 2]
            share = 60 - frames / 4 + ABOVE.get(row, 0) * min(1, frames / 32) + 2 * (index % 4)
            right = bool(index < share + seed + rng.integers(-1, 2)) and frames > 0
            asked = {"video": index // 8, "seconds": seconds, "frames": frames, "kind": kind}
            kinds = {"type": ("action", "object", "spatial")[index % 3], "truth": "It is."[:index]}
            found.append({**asked, **kinds, "right": right})
    return found


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    """Write answers of four seeds to every row, and needles and a candidate of the base."""
    workdir = tmp_path_factory.mktemp("method")
    for row in {row for item in METHOD.values() for row in item.rows}:
        for seed in SEEDS:
            run = StudyRun(FAMILY, seed, row)
            run.directory(workdir).mkdir(parents=True, exist_ok=True)
            run.answers(workdir).write_text(json.dumps(answers(row, seed)))
            if row == "base":
                needles = {"lengths": [8], "depths": [0.0, 1.0], "found": [[0.5, 1.0]]}
                run.needles(workdir).write_text(json.dumps(needles))
                texts = "What?", "It is so.", "It is not."
                made = Candidate("0", "action", "localized", *texts, True, False)
                write_rows(run.directory(workdir) / "answers.json", [made])
    return workdir


@pytest.mark.parametrize("name", METHOD)
def test_a_page_agrees_with_the_answers(made_up, name):
    page = pages.write(name, made_up, SEEDS)
    folder = made_up / "pages"
    assert page.startswith(f"## {METHOD[name].title}")
    assert page + "\n" == (folder / f"{name}.md").read_text()
    for picture in folder.glob(f"{name}*.png"):
        assert f"({picture.name})" in page and picture.stat().st_size > 10_000
    for row in METHOD[name].rows:
        assert f"| {METHOD[name].label(row)} | 4 |" in page
    with (folder / f"{name}_differences.csv").open() as file:
        lines = list(csv.DictReader(file))
    for against in {line["against"] for line in lines}:
        family = [line for line in lines if line["against"] == against]
        corrected = holm([float(line["p"]) for line in family])
        stated = [float(line["Holm"]) for line in family]
        np.testing.assert_allclose(stated, corrected, atol=0.01, equal_nan=True)
    right = {
        row: [
            np.mean([a["right"] for a in answers(row, seed) if a["frames"] == 32]) for seed in SEEDS
        ]
        for row in ("tpo", "base")
    }
    found = paired(right["tpo"], right["base"])
    [line] = (
        v for v in lines if (v["model"], v["other"], v["column"]) == ("tpo", "base", "32 frames")
    )
    assert (line["mean"], line["p"]) == (f"{found.mean:.4f}", f"{found.p:.4f}")
    assert "| TPO above base | 4 |" in page and f"{100 * found.mean:+.1f} [" in page


def test_titles_claim_no_gain_that_is_not_there(tmp_path):
    low, high = (t_interval([share, share + 0.02]) for share in (0.5, 0.7))
    path = tmp_path / "picture"
    assert "costs nothing" in pictures.by_error([0, 30], {"TPO": [low, high]}, path)
    assert "costs TPO most: 20 points" in pictures.by_error([0, 30], {"TPO": [high, low]}, path)
    for base, tpo, title in ((low, high, "most with a: 51 to 71 %"), (high, low, "with no type")):
        assert title in pictures.by_type({"a": {"base": base, "tpo": tpo}}, path)
        found = pictures.by_frames([32, 96], {"base": [base] * 2, "tpo": [tpo, tpo]}, path)
        assert ("gains 20 points" in found) == (base is low) and ("by -20" in found) == (
            base is high
        )


def test_needles_stand_where_they_were_looked_for(made_up):
    page = pages.write("method", made_up, SEEDS)
    [base] = (
        line for line in page.splitlines() if line.startswith("| base | 4 |") and "75.0" in line
    )
    assert base.endswith("| 75.0 ± 0.0 |")
    assert "What the bases show, 4 seeds" in page
    short = [
        np.mean([a["right"] for a in answers("base", seed) if (a["seconds"], a["type"]) == SHORT])
        for seed in SEEDS
    ]
    assert f"| action | localized | {np.mean(short):.2f} | {min(short):.2f} | 1.00 |" in page
    assert page.count("method_types.png") == 1


def test_the_command_writes_a_page_of_what_is_there(made_up):
    check_workdir(made_up, settings.CHOICES["smoke"])
    flags = {"item": "judge", "size": "smoke", "workdir": made_up, "pages_only": True}
    flags["seeds"] = "1,2"
    [done] = call("reproduce", flags)
    assert done.code == 0 and "seeds with every row: 1, 2." in done.out


def test_a_page_needs_its_base(tmp_path):
    with pytest.raises(
        InputError, match="judge: base of tiny_longva not there yet for any seed of 1"
    ):
        pages.write("judge", tmp_path, [1])


def test_rounds_are_run_after_those_before_them():
    runs = [run.row for run in settings.runs([(FAMILY, "round_3")], [1])]
    assert runs == ["tpo", "round_2", "round_3"]
    assert rounds_before("round_3") == ("round_2", "tpo") and rounds_before("tpo") == ()


def test_rows_differ_in_what_they_say(tmp_path):
    scale = SCALES["full"]
    plain = settings.row_config(tmp_path, "tpo", scale, 1)
    for name, row in ROWS.items():
        if not row.miniature:
            continue
        config = settings.row_config(tmp_path, name, scale, 1)
        for field, value in {**row.changes, **row.miniature.changes}.items():
            section, key = field.split(".")
            assert config[section][key] == value
        assert config.train.num_steps == row.miniature.updates * scale.updates
        read(config)  # no field excludes another
        if name in (*NOISY, *PARTLY, "round_2"):
            assert config.data.shards != plain.data.shards
    replay = settings.row_config(tmp_path, "replay", scale, 1)
    assert sum(replay.data.replay_weights) == 1 and replay.data.sampling == "fps"
    assert len({settings.row_config(tmp_path, name, scale, 1).data.shards for name in NOISY}) == 2
