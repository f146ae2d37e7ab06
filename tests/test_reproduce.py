"""Tables and figures: pairs, stages at smoke size, pages, and the commands at 7B."""

import ast
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.commands import call
from tests.config_files import load
from tests.test_docs import PARSE, ROOT
from tpo_jax import families, reproduce
from tpo_jax.checkpoints.models import save_model
from tpo_jax.errors import InputError
from tpo_jax.evaluation import niah_files
from tpo_jax.reproduce import FIGURES, TABLES
from tpo_jax.study import full_size, full_size_pages, pages, settings, sources
from tpo_jax.study import runs as study_runs
from tpo_jax.study.items import ITEMS, METHOD, needed
from tpo_jax.study.records import Candidate, StudyRun
from tpo_jax.study.rows import ROWS
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

SEEDS = (1, 2, 3)


def candidates(n: int = 2000) -> list[Candidate]:
    """Return rows of `answers.json`: the well informed answer is right more often."""
    rng = np.random.default_rng(1)
    rows = []
    for index in range(n):
        truth = f"It is {rng.integers(9)}."
        said = [truth if rng.random() < share else f"wrong {index}" for share in (0.7, 0.2)]
        drawn = [truth if rng.random() < 0.5 else f"drawn {index} {d}" for d in range(2)]
        rows.append(
            Candidate(
                id=str(index),
                video=f"{index // 4}.mp4",
                type="object",
                kind=("localized", "comprehensive")[index % 2],
                prompt="What?",
                truth=truth,
                manipulation="a / b",
                told=truth if rng.random() < 0.5 else f"told {index}",
                drawn=tuple(drawn),
                chosen=said[0],
                rejected=said[1],
                chosen_right=said[0] == truth,
                rejected_right=said[1] == truth,
            )
        )
    return rows


def test_sources_of_pairs_follow_their_definitions():
    rows, errors = candidates(), {"noisy": 0.2, "written": 0.1}
    truth = {row.id: row.truth for row in rows}
    made = {
        source: sources.pairs_of(source, rows, 3, errors.get(source, 0.0))
        for source in ("judged", "unjudged", "noisy", "written", "sampled")
    }
    assert made["noisy"] == sources.pairs_of("noisy", rows, 3, 0.2)
    for pairs in made.values():
        assert len({p["id"] for p in pairs}) == len(pairs)
        assert all(p["chosen"] != p["rejected"] for p in pairs)
    right = {
        source: np.mean([p["chosen"] == truth[p["id"]] for p in pairs])
        for source, pairs in made.items()
    }
    assert right["judged"] == right["sampled"] == 1
    assert all(p["rejected"] != truth[p["id"]] for p in made["judged"] + made["sampled"])
    kept = {p["id"] for p in made["judged"]}
    differ = {p["id"] for p in made["unjudged"]}
    noisy = {p["id"] for p in made["noisy"]}
    assert kept < differ and noisy < differ
    assert abs(len(kept - noisy) / len(kept) - 0.2) < 0.05
    assert abs(len(noisy - kept) / len(differ - kept) - 0.2) < 0.05
    assert right["unjudged"] < right["noisy"] < 1
    # A wrong answer is drawn from all answers; one in nine of them is the true one here.
    assert abs(right["written"] - (1 - 0.1 * 8 / 9)) < 0.03
    written = sources.pairs_of("written", rows, 3)
    assert len(written) == len(rows) and all(p["chosen"] == truth[p["id"]] for p in written)
    # Of the pairs about a segment whose chosen answer all frames give as well, a quarter is left.
    thinned = sources.pairs_of("thinned", rows, 3)
    known = {row.id for row in rows if row.kind == "localized" and row.told == row.truth}
    assert [p for p in thinned if p["id"] not in known] == [
        p for p in made["judged"] if p["id"] not in known
    ]
    assert len(known & {p["id"] for p in thinned}) == len(known & kept) // 4 > 0
    timed = [dataclasses.replace(row, type="temporal reasoning") for row in rows[:500]]
    left = {row.id for row in rows[500:]}
    untimed = sources.pairs_of("untimed", timed + rows[500:], 3)
    assert len(untimed) < len(thinned) and untimed == [p for p in thinned if p["id"] in left]
    # Verdicts that a judge of few errors inverts, one of more errors inverts, too.
    few, many = ({p["id"] for p in sources.pairs_of("noisy", rows, 3, e)} for e in (0.1, 0.3))
    assert kept - few < kept - many


def test_pairs_of_two_videos_are_of_one_question_with_two_answers():
    rows = [dataclasses.replace(row, video=f"{row.id}.mp4") for row in candidates()]
    pairs = sources.pairs_of("two_videos", rows, 3)
    judged = sources.pairs_of("judged", rows, 3)
    assert pairs[: len(judged)] == judged  # those of TPO, in its order
    truths = {(row.video, row.prompt, row.truth) for row in rows}
    two = pairs[len(judged) :]
    assert len(two) == len(judged) and {p["kind"] for p in two} == {"video"}
    for pair in two:
        assert (pair["video"], pair["prompt"], pair["chosen"]) in truths
        assert (pair["rejected_video"], pair["prompt"], pair["chosen"]) not in truths


def test_better_answers_are_wrong_where_both_are():
    rng, hues, shapes = (
        np.random.default_rng(2),
        ("red", "orange", "blue"),
        ("cross", "cube", "ball"),
    )
    rows = []
    for index, made in enumerate(candidates(300)):
        truth, wrong, far = (
            f"It is {'an' if hue == 'orange' else 'a'} {hue} {shape}."
            for hue, shape in rng.permuted([hues, shapes], axis=1).T
        )
        near = truth.replace(truth.split()[-1], wrong.split()[-1])
        rejected = (near, wrong, far.removesuffix("."), "It is a cube.")[index % 4]
        right = {"chosen_right": True, "rejected_right": False}
        texts = {"truth": truth, "chosen": truth, "rejected": rejected}
        rows.append(dataclasses.replace(made, **texts, **right))
    truths = {row.id: row.truth.split() for row in rows}
    pairs = sources.pairs_of("partly", rows, 3)
    assert len(pairs) == 225  # an answer of another length shares no place
    for pair in pairs:
        sides = (pair["chosen"].split(), pair["rejected"].split())
        places = range(5)
        chosen, rejected = ({i for i in places if s[i] != truths[pair["id"]][i]} for s in sides)
        assert len(chosen - {2}) == 1  # wrong in one word, but for its article
        assert chosen - {2} < rejected and pair["chosen"].endswith(".")
        for text in (pair["chosen"], pair["rejected"]):
            assert ("an orange" in text) == ("orange" in text) and "an red" not in text
    assert {tuple(pair["chosen"].split()[-2:]) for pair in pairs} == {
        (hue, f"{shape}.") for hue in hues for shape in shapes
    }


def untrained(config, workdir: Path) -> Path:
    """Return the model that training would start from, in place of training."""
    workdir.mkdir(parents=True)
    shutil.copytree(config.model.checkpoint, workdir / "model")
    return workdir / "model"


def killed(config, workdir: Path) -> Path:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_study_resumes_where_it_stopped(tmp_path):
    choices = settings.CHOICES["smoke"]
    few = {"short_videos": 8, "encoder_steps": 1, "replay_videos": 2, "long_videos": 2}
    choices = dataclasses.replace(choices, scale=dataclasses.replace(choices.scale, **few))
    study_runs.check_workdir(tmp_path, choices)
    todo = settings.runs([("tiny_longva", "tpo"), ("tiny_longva", "base")], [1])
    assert [run.row for run in todo] == ["base", "tpo"]
    with pytest.raises(KeyboardInterrupt):
        study_runs.carry_out_all(todo, tmp_path, choices, killed, workers=1)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert tmp_path / "common" / "short_shards" / "manifest.json" in before
    study_runs.carry_out_all(todo, tmp_path, choices, untrained, workers=1)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert {p.name for p in before if before[p] != after[p]} <= {"times.json", "lock"}
    rows = [json.loads(run.answers(tmp_path).read_text()) for run in todo]
    assert rows[0] == rows[1]  # nothing was learned: the same weights answer the same

    for item in ("table2", "table4", "figure2", "figure3", "figure5", "figure6"):
        if item == "table2":  # of the other family
            with pytest.raises(
                InputError, match="base of tiny_llava_video not there yet for any seed of 1"
            ):
                pages.write(item, tmp_path, [1])
            continue
        page = pages.write(item, tmp_path, [1])
        assert page.startswith(f"## {ITEMS[item].title}")
        for ending in ("csv", "png", "md"):
            assert (tmp_path / "pages" / f"{item}.{ending}").stat().st_size > 0
    study_runs.carry_out_all(todo, tmp_path, choices, killed, workers=1)  # nothing is left to do

    flags = {"item": "table4", "workdir": tmp_path, "pages_only": True}
    typo = tmp_path / "typo"
    other, nowhere, run = call("reproduce", flags, flags | {"workdir": typo}, flags | {"run": True})
    assert other.code == 2 and "results of other choices (" in other.err
    assert nowhere.code == 2 and f"--workdir={typo}: no folder of results" in nowhere.err
    assert not typo.exists()
    assert run.code == 2 and "--run is not for --scale=miniature" in run.err
    todo[0].answers(tmp_path).write_text("[")
    for content in ("", "[]"):
        (tmp_path / "choices.json").write_text(content)
        with pytest.raises(InputError, match="choices.json: "):
            study_runs.check_workdir(tmp_path, choices)
    with pytest.raises(InputError, match="base_answers.json: cannot be read"):
        pages.write("figure2", tmp_path, [1])


PARENT = """
import concurrent.futures, multiprocessing, os, pathlib, time

def begin(*arguments):
    from tpo_jax.study.runs import begin_worker  # which takes the parent two seconds

    begin_worker(*arguments)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    cores.put(sorted(os.sched_getaffinity(0))[-1])
    start = {"initializer": begin, "initargs": (pathlib.Path("compiled"), cores)}
    with concurrent.futures.ProcessPoolExecutor(1, context, **start) as pool:
        print(pool.submit(os.getpid).result(), pool.submit(os.sched_getaffinity, 0).result())
        print(flush=True)
        pool.submit(time.sleep, 1000).result()
"""


def test_a_worker_has_a_core_and_ends_with_its_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        pid, cores = parent.stdout.readline().split(maxsplit=1)
        parent.kill()
    assert len(ast.literal_eval(cores)) == 1
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 60
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def made_up(tmp_path) -> Path:
    """Write answers of three seeds: TPO 10 points above base at 32 frames, localized only equal.

    One seed has no comprehensive only.
    """
    shares = {"base": 0.5, "tpo": 0.6, "localized_only": 0.6, "comprehensive_only": 0.4}
    for seed in SEEDS:
        for variant, share in shares.items():
            if (seed, variant) == (3, "comprehensive_only"):
                continue
            path = StudyRun("tiny_longva", seed, variant).answers(tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {
                    **{"video": index // 8, "seconds": 96, "frames": frames},
                    **{"type": "object", "kind": "localized", "truth": "It is so."},
                    "right": index % 100 < round(100 * share) + seed + (frames == 64),
                }
                for frames in (16, 32, 64)
                for index in range(200)
            ]
            path.write_text(json.dumps(rows))
        (path.parent / "answers.json").write_text(
            json.dumps([dataclasses.asdict(row) for row in candidates(100)])
        )
    return tmp_path


def test_a_page_agrees_with_the_answers(made_up):
    page = pages.write("table4", made_up, SEEDS)
    assert "seeds with every row of the paper's: 1, 2." in page
    assert "| both | 54.2 | 61.7 | 55.1 |" in page
    for other, cells, said in (
        ("comprehensive", ("| +20.0 |", "| 2 of 2 |"), "holds"),
        ("localized", ("| +0.0 |", "| 0 of 3 |"), "not shown"),
    ):
        begin = f"| both (TPO) above {other} only"
        lines = [line for line in page.splitlines() if line.startswith(begin)]
        assert len(lines) == 2  # at 32 and at 64 frames
        for line in lines:
            assert all(cell in line for cell in cells) and line.endswith(f"| {said} |")
    with (made_up / "pages/table4.csv").open() as file:
        rows = {(r["model"], r["column"]): r for r in csv.DictReader(file)}
    row = rows["tpo", "96 s, 64 frames"]
    assert row["seeds"] == "3" and row["per seed"] == "1:0.6200 2:0.6300 3:0.6400"
    assert "| object | localized | 150 |" in page
    low, high = stats.t.interval(0.95, 2, 0.63, 0.01 / np.sqrt(3))
    np.testing.assert_allclose([float(row["low"]), float(row["high"])], [low, high], atol=1e-4)
    assert rows["tpo", "bare words"]["mean"] == "nan"
    page = pages.write("table1", made_up, SEEDS)
    assert "| object, localized | 52.0 ± 2.5 | 62.0 ± 2.5 | +10.0 |" in page
    shutil.copytree(made_up / "tiny_longva", made_up / "tiny_llava_video")
    page = pages.write("table2", made_up, SEEDS)
    assert "| LLaVA-Video-TPO | 60.1 |" in page and "| GPT-4o (quoted) | 66.7 |" in page


def test_every_row_belongs_to_an_item_and_to_a_wave():
    wanted = set().union(*(needed(item, besides=True) for item in ITEMS | METHOD))
    planned = {(family, row) for family, rows in settings.WAVES for row in rows}
    assert wanted == planned
    assert {v for f, v in planned if f == "tiny_longva"} == {
        "base",
        *(name for name, row in ROWS.items() if row.miniature),
    }


def test_commands_at_7b_parse_and_missing_things_are_named(tmp_path):
    assert [*TABLES, *FIGURES] == [*ITEMS] and [*reproduce.METHOD] == [*METHOD]
    found = [command for item in ITEMS for command in full_size.commands(item, full_size.Places())]
    lines = {json.dumps([f"tpo_jax.{c.name}", *c.arguments]) for c in found}
    commands = json.dumps([json.loads(line) for line in sorted(lines)])
    child = subprocess.run(
        [sys.executable, "-c", PARSE, commands], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert not any(json.loads(child.stdout))

    flags = {"item": "table4", "scale": "7b", "workdir": tmp_path / "out"}
    printed, larger, no_slice, too_large, other_scale, lacking, no_configs, *refused = call(
        "reproduce",
        flags,
        flags | {"topology": "v5e:4x8"},
        flags | {"topology": "v5e"},
        flags | {"topology": "v5e:16x16"},
        flags | {"seeds": "1,2"},
        flags | {"run": True, "checkpoint": tmp_path, "benchmarks": tmp_path / "none"},
        flags | {"run": True, "configs": tmp_path},
        flags | {"item": "table9"},
        {"item": "table1", "workdir": tmp_path, "seeds": "1,1"},
        flags | {"item": "method"},
    )
    unknown, seeds, small = refused
    assert load("longva_tpo").get_config().train.batch_size == full_size.BATCH_SIZE
    assert printed.code == 0 and "11.7 chip-hours" in printed.out
    assert printed.out.count("tpo_jax.train") == 3
    assert printed.out.count("--config.compute.micro_batches=4") == 3 + 1  # and `plan`
    assert larger.out.count("--config.compute.micro_batches=2") == 3 + 1
    assert "Training on v5e:4x8: ask `python -m tpo_jax.plan" in larger.out
    assert no_slice.code == 2 and "--topology=v5e: slices of v5e are" in no_slice.err
    assert too_large.code == 2 and "256 chips do not share 64 pairs" in too_large.err
    assert other_scale.code == 2 and "--seeds is not for --scale=7b" in other_scale.err
    assert lacking.code == 2 and "--shards is not given" in lacking.err
    assert f"--benchmarks={tmp_path / 'none'} is not there" in lacking.err
    assert no_configs.code == 2 and f"--configs={tmp_path} is not the folder" in no_configs.err
    assert unknown.code != 0 and "table9" in unknown.err
    assert seeds.code == 2 and "--seeds=1,1" in seeds.err
    assert small.code == 2 and "--item=method is for --scale=miniature" in small.err
    assert not (tmp_path / "out").exists()


def evaluated(item: str, row: str, places: full_size.Places, benchmark: str, score: float, **more):
    """Write what `evaluate run` leaves of a row, as far as pages read it."""
    folder = Path(full_size.place(item, row, places)) / benchmark
    folder.mkdir(parents=True)
    summary = {"benchmark": benchmark, "score": score} | more
    (folder / "results.json").write_text(json.dumps({"tpo_jax": summary}))


def test_results_at_7b_stand_beside_those_of_the_paper(tmp_path):
    places = full_size.Places(workdir=str(tmp_path))
    assert full_size_pages.write("table1", places) == ""  # nothing was carried out
    evaluated("table1", "base", places, "longvideobench_val_v", 0.5134)
    evaluated("table1", "base", places, "mlvu_dev", 58.76)
    groups = {"duration": {"short": {"percent": 61.1}, "long": {"percent": 46.22}}}
    evaluated("table1", "base", places, "videomme", 52.6, breakdown=groups)
    evaluated("table1", "tpo", places, "videomme_w_subtitle", 56.6)
    page = full_size_pages.write("table1", places)
    assert "| LongVA-7B | 51.3 | 58.8 | 61.1/61.6 |" in page
    assert "| base | 51.3 | 58.8 | 61.1/ |  | 46.2/ | 52.6/ |" in page
    assert "| TPO |  |  |  |  |  | /56.6 |" in page and "| SFT_Self |  |" in page
    assert page + "\n" == (tmp_path / "pages/table1.md").read_text()
    assert (tmp_path / "pages/table1.png").stat().st_size > 0
    lines = (tmp_path / "pages/table1.csv").read_text().splitlines()
    assert "Partial" not in page
    assert lines[1] == "base,LVB,0,51.340" and lines[-1] == "tpo,average,1,56.600"
    evaluated("figure2", "tpo", places, "mlvu_dev_64", 60.0)
    assert "| TPO |  |  | 60.0 |  |  |" in full_size_pages.write("figure2", places)
    evaluated("table5", "tpo", places, "mlvu_dev", 50.0, partial=True, missing=9)
    page = full_size_pages.write("table4", places)
    assert "| base | 51.3 | 58.8 | 52.6 |" in page
    assert "Partial scores:\n\n- both (TPO): mlvu_dev, 9 questions missing" in page
    broken = Path(full_size.place("table1", "sft_self", places)) / "mlvu_dev/results.json"
    broken.parent.mkdir(parents=True)
    for content in ("", "[]", "{}"):
        broken.write_text(content)
        with pytest.raises(InputError, match="mlvu_dev/results.json: "):
            full_size_pages.write("table1", places)


def test_figures_at_7b_are_made_of_what_niah_and_curate_left(tmp_path):
    places = full_size.Places(workdir=str(tmp_path))
    for item in ("figure3", "figure5", "figure6"):
        assert full_size_pages.write(item, places) == ""
    for row, scores in (("base", [[1.0, 0.5], [0.5, 0.0]]), ("tpo", [[1.0, 1.0], [1.0, 0.75]])):
        folder = Path(full_size.place("figure3", row, places)) / "niah"
        folder.mkdir(parents=True)
        niah_files.write_results(folder, np.array(scores), [32, 3000], [0.0, 1.0], {})
    assert "| TPO | 3000 | 87.5 |" in full_size_pages.write("figure3", places)
    # Depths that fall together where they are rounded count alike.
    niah_files.write_results(
        folder, np.array([[1.0] * 3, [1.0, 0.5, 0.75]]), [32, 3000], [0.0, 0.04, 1.0], {}
    )
    assert "| TPO | 3000 | 75.0 |" in full_size_pages.write("figure3", places)
    niah_files.write_results(folder, np.array(scores), [32, 3000], [0.0, 1.0], {})
    page = full_size_pages.write("figure3", places)
    assert "| base | 3000 | 25.0 |" in page and "| TPO | 3000 | 87.5 |" in page
    lines = (tmp_path / "pages/figure3.csv").read_text().splitlines()
    assert "base,32,1.0,0.5000" in lines and len(lines) == 1 + 2 * 4
    report = Path(full_size.curated("figure5", places)) / "report.json"
    report.parent.mkdir()
    lengths = {"3 to 10 min": 3, "longer": 1}
    report.write_text(json.dumps({"video lengths": lengths, "question types": {"object": 2}}))
    assert "| 3 to 10 min | not printed | 75.0 |" in full_size_pages.write("figure5", places)
    assert "| object | 14.9 | 100.0 |" in full_size_pages.write("figure6", places)
    for item in ("figure3", "figure5", "figure6"):
        assert (tmp_path / f"pages/{item}.png").stat().st_size > 0
    for file, item in ((folder / "all_accuracies.json", "figure3"), (report, "figure6")):
        for content in ("", "[]", "{}", "[{}]", '{"question types": {"object": "x"}}'):
            file.write_text(content)
            with pytest.raises(InputError, match=str(file)):
                full_size_pages.write(item, places)


def test_pairs_are_given_or_curated_at_7b(tmp_path):
    there, video = (str(tmp_path / name) for name in ("tiny_longva", "tiny_llava_video"))
    for family in ("tiny_longva", "tiny_llava_video"):
        config = families.preset(family)
        save_tokenizer(train_tokenizer(["a"], 300), tmp_path / "tokenizer")
        save_model(
            tmp_path / family, config, families.init_params(config, 0), tmp_path / "tokenizer"
        )
    places = full_size.Places(checkpoint=there, benchmarks=there)
    assert full_size.missing("table4", places) == ["--shards is not given"]
    curated = full_size.Places(checkpoint=there, benchmarks=there, videos=there)
    assert full_size.missing("table4", curated) == []
    assert [c.name for c in full_size.commands("table4", curated)][:2] == ["curate", "evaluate"]
    given = full_size.Places(checkpoint=there, benchmarks=there, shards=there)
    other = dataclasses.replace(given, checkpoint=video)
    assert full_size.missing("table2", other) == full_size.missing("table4", given) == []
    for item, places, family in (("table2", given, "llava_video"), ("table4", other, "longva")):
        [lacking] = full_size.missing(item, places)
        assert lacking == f"--checkpoint={places.checkpoint} has no tower of {family}"
    assert "curate" not in [c.name for c in full_size.commands("table4", given)]
