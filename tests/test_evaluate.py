"""The evaluate command: stored predictions, and whole runs on small folders."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.adapted import save_adapted
from tests.commands import ROOT, call, call_commands
from tests.evaluation.agreement import generate, make_docs
from tests.evaluation.folders import FOLDERS
from tpo_jax import families
from tpo_jax.data import prompts
from tpo_jax.data.preparation import Settings, prepare
from tpo_jax.evaluation.benchmarks import ask
from tpo_jax.evaluation.scorers import Scorer
from tpo_jax.families.llava_qwen.template import INFERENCE
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import load
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.video import sampling
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer


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
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "today.jsonl")
    today, before = call(
        "evaluate",
        flags | {"output": tmp_path / "link.jsonl"},
        flags | {"output": tmp_path / "before.jsonl", "scorer": "paper_era"},
        command="score",
    )
    assert (tmp_path / "link.jsonl").is_symlink()  # what it points to was written
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
        "no number": json.dumps(rows[0] | {"more": math.nan}),
    }
    flags = {"benchmark": "videomme", "predictions": path, "output": tmp_path / "out.jsonl"}
    calls, messages = [], []
    for name, line in broken.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(rows[0]) + f"\n{line}\n")
        calls.append(flags | {"predictions": file})
        messages.append(f"{file}:2: ")
    (tmp_path / "empty.jsonl").write_text("\n")
    os.mkfifo(tmp_path / "pipe")
    for name, value, message in (
        ("predictions", tmp_path / "empty.jsonl", "no prediction"),
        ("predictions", tmp_path / "nothing.jsonl", "--predictions="),
        ("predictions", "/dev/zero", "--predictions=/dev/zero: no such file"),
        ("benchmark", "mlvu", "videomme|"),
        ("scorer", "old", "paper_era"),
        ("output", tmp_path / "no/where.jsonl", "no such directory"),
        ("output", tmp_path, "a folder"),
        ("output", "", "--output=: must name a file"),
        ("output", tmp_path / "pipe", "not a regular file"),
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
    (nothing,) = call("evaluate", {})
    assert nothing.code == 2 and "the first argument must be one of run, score, niah" in nothing.err


def test_every_subcommand_has_flags_of_its_own() -> None:
    """The others' are neither shown nor taken."""
    own = {"run": "time_instruction", "score": "predictions", "niah": "haystack"}
    others_of = {name: [x for x in own.values() if x != flag] for name, flag in own.items()}
    calls = [
        (name, flags)
        for name, others in others_of.items()
        for flags in ({"help": "true"}, *({other: "a"} for other in others))
    ]
    results = iter(call_commands("evaluate", *calls))
    for name, flag in own.items():
        others = others_of[name]
        helped, *wrong = itertools.islice(results, 1 + len(others))
        assert f"--{flag}:" in helped.out and "--output:" in helped.out
        assert not [other for other in others if f"--{other}:" in helped.out]
        for other, result in zip(others, wrong, strict=True):
            [owner] = [command for command, its in own.items() if its == other]
            (line,) = result.err.splitlines()
            assert (result.code, result.out) == (2, "")
            assert line == f"error: --{other} is a flag of {owner}, not of {name}"


@pytest.fixture(scope="module")
def models(tmp_path_factory, benchmark_folders):
    """A random model whose tokenizer knows the prompts: `base`, `adapters`, both `merged`."""
    folder = tmp_path_factory.mktemp("models")
    texts = [
        question.prompt
        for name in ("videomme_w_subtitle", "mlvu_dev")
        for question in ask(benchmark_folders / FOLDERS[name], name)[0]
    ]
    save_tokenizer(train_tokenizer(texts, vocab_size=500), folder / "tokenizer")
    config = families.preset("tiny_longva")
    places = {name: folder / name for name in ("base", "adapters", "merged")}
    save_adapted(config, 0, folder / "tokenizer", **places)
    return folder


def run_flags(models, folders, output, **more) -> dict:
    return {
        "benchmark": "videomme",
        "data": folders / "videomme",
        "checkpoint": models / "base",
        "adapters": models / "adapters",
        "output": output,
        "num_frames": 4,
        "dtype": "float32",
        "batch_size": 2,
    } | more


def read_samples(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(models, benchmark_folders, tmp_path_factory):
    """The folder of a whole run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    (result,) = call("evaluate", run_flags(models, benchmark_folders, folder), command="run")
    assert result.code == 0, result.err
    assert "videomme: 100%" in result.err
    return folder, json.loads(result.out)


def test_answers_are_those_to_one_question_at_a_time(finished, models, benchmark_folders) -> None:
    folder, _ = finished
    model = load(models / "merged", mesh=make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1]))
    config, tokenizer = model.config, model.tokenizer
    generator = model.generator(Decoding(max_new_tokens=16))
    samples = read_samples(folder)
    questions, _ = ask(benchmark_folders / "videomme", "videomme")
    assert [sample["doc_id"] for sample in samples] == list(range(7))
    for sample, question in list(zip(samples, questions, strict=True))[::3]:
        frames, _, _ = sampling.read_frames(question.video, "uniform", 4)
        row = prompts.build_prompts(
            tokenizer, [question.prompt], config.visual_tokens(4), template=INFERENCE
        )
        ((expected,),) = generator.answer([families.of(config).preprocess(frames, config)], [row])
        assert sample["filtered_resps"] == expected
        assert sample["input"] == question.prompt
        assert sample["target"] == question.doc["answer"]


def test_a_store_of_the_videos_gives_the_same_samples(
    finished, models, benchmark_folders, tmp_path
) -> None:
    made = benchmark_folders / "videomme", benchmark_folders / "datasets/longvideobench"
    stores = tmp_path / "store", tmp_path / "spaced"
    for folder, store in zip(made, stores, strict=True):
        prepare(None, folder, store, Settings(num_frames=1))
    shutil.copytree(made[0], tmp_path / "rows", ignore=shutil.ignore_patterns("*.mp4"))
    flags = run_flags(models, benchmark_folders, tmp_path / "out")
    flags |= {"data": tmp_path / "rows", "videos": stores[0]}
    (result,) = call("evaluate", flags, command="run")
    assert result.code == 0, result.err
    for name in ("samples.jsonl", "answers.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / name).read_bytes()

    for videos, message in (
        (stores[1], f"row 0: {stores[1]}/data/v0.mp4: no such video in the store {stores[1]}"),
        (tmp_path / "none", f"--videos={tmp_path / 'none'}: no such folder"),
    ):
        (result,) = call("evaluate", flags | {"videos": videos}, command="run")
        (line,) = result.err.splitlines()
        assert (result.code, result.out) == (2, "") and message in line
    asked = [ask(made[1], "longvideobench_val_i", videos=v)[0] for v in (made[1], stores[1])]
    for one, other in zip(*asked, strict=True):
        pictures = zip(one.pictures(), other.pictures(), strict=True)
        assert all(np.array_equal(*both) for both in pictures)


def test_results_are_those_of_score(finished, benchmark_folders, tmp_path) -> None:
    folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    assert results["results"] == printed["results"]
    assert results["n-samples"] == {"videomme": {"original": 7, "effective": 7}}
    rows = [
        {"doc": question.doc, "prediction": sample["filtered_resps"]}
        for question, sample in zip(
            ask(benchmark_folders / "videomme", "videomme")[0], read_samples(folder), strict=True
        )
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = {"benchmark": "videomme", "predictions": tmp_path / "p.jsonl"}
    (scored,) = call("evaluate", flags | {"output": tmp_path / "o.jsonl"}, command="score")
    assert json.loads(scored.out) == printed


def test_time_instruction_is_what_the_checkpoint_asks_for(
    finished, models, benchmark_folders, tmp_path
) -> None:
    """Else none; a flag decides over both."""
    shutil.copytree(models / "base", tmp_path / "asks")
    values = json.loads((tmp_path / "asks/config.json").read_text())
    values["model"]["time_instruction"] = "newline"
    (tmp_path / "asks/config.json").write_text(json.dumps(values))
    same, other = tmp_path / "same", tmp_path / "other"
    flags = run_flags(models, benchmark_folders, same, checkpoint=tmp_path / "asks")
    results = call(
        "evaluate",
        flags | {"time_instruction": "none"},
        flags | {"output": other},
        command="run",
    )
    assert [result.code for result in results] == [0, 0], results
    modes = [
        json.loads((folder / "results.json").read_text())["config"]["time_instruction"]
        for folder in (finished[0], same, other)
    ]
    assert modes == ["none", "none", "newline"]
    answers = [[s["filtered_resps"] for s in read_samples(x)] for x in (finished[0], same, other)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("how", ["in a line", "by a signal"])
def test_killed_runs_resume(finished, models, benchmark_folders, tmp_path, how) -> None:
    folder, printed = finished
    flags, path = run_flags(models, benchmark_folders, tmp_path), tmp_path / "answers.jsonl"
    lines = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    if how == "in a line":
        path.write_bytes(b"".join(lines[:3]) + lines[3][:-5])
    else:
        command = [sys.executable, "-m", "tpo_jax.evaluate", "run"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    kept = path.read_bytes().splitlines(keepends=True)[:-1]
    (result,) = call("evaluate", flags, command="run")
    assert result.code == 0, result.err
    assert json.loads(result.out) == printed
    now = path.read_bytes().splitlines(keepends=True)
    assert now[: len(kept)] == kept
    assert sorted(now) == sorted(lines)
    assert (tmp_path / "samples.jsonl").read_text() == (folder / "samples.jsonl").read_text()


def test_partial_runs_and_wrong_input(finished, models, benchmark_folders, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(benchmark_folders / "videomme", data)
    (data / "data/v1.mp4").unlink()
    (data / "data/v2.mp4").write_bytes(b"no video")
    flags = run_flags(models, benchmark_folders, tmp_path / "out", data=data)
    used = tmp_path / "used"
    shutil.copytree(finished[0], used)
    missing, broken, *wrong = call(
        "evaluate",
        flags,
        flags | {"allow_missing": True},
        run_flags(models, benchmark_folders, used, checkpoint=models / "merged"),
        run_flags(models, benchmark_folders, used, num_frames=5),
        run_flags(models, benchmark_folders, used, benchmark="mlvu_dev"),
        run_flags(models, benchmark_folders, used, data=tmp_path / "nowhere"),
        run_flags(models, benchmark_folders, used, checkpoint=tmp_path / "nowhere"),
        run_flags(models, benchmark_folders, used, data=""),
        run_flags(models, benchmark_folders, tmp_path / "long", num_frames=1000),
        run_flags(
            models,
            benchmark_folders,
            tmp_path / "i",
            benchmark="longvideobench_val_i",
            data=benchmark_folders / FOLDERS["longvideobench_val_i"],
        ),
        command="run",
    )
    assert missing.code == 2
    assert "3 of 7 questions cannot be asked" in missing.err and "v1.mp4" in missing.err
    assert broken.code == 0, broken.err
    summary = json.loads(broken.out)
    assert summary["partial"] and summary["missing"] == 4 and summary["questions"] == 3
    assert broken.err.count("v1.mp4") == 3 and broken.err.count("v2.mp4") == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["tpo_jax"]["partial"]
    messages = ("weights", "num_frames 4, not 5", "'video_name'", "nowhere", "nowhere")
    messages += ("--data", "frames would fit", "--num_frames")
    for result, message in zip(wrong, messages, strict=True):
        assert (result.code, result.out) == (2, ""), message
        assert message in (line := result.err.splitlines()[-1]) and line.startswith("error: ")
    assert (used / "answers.jsonl").read_bytes() == (finished[0] / "answers.jsonl").read_bytes()
