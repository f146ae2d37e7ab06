"""Tiny models behind the commands that ask them: benchmarks, needles, curation."""

import json
from types import SimpleNamespace

from PIL import Image

from tests.commands import call_commands, call_program
from tpo_jax.data.shards import open_shards
from tpo_jax.evaluation.lmms_plugin import TpoJax
from tpo_jax.inference.model import load


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_benchmarks_and_needles(sizes, initial, benchmark_folders, tmp_path):
    """Questions as lmms-eval asks these models, three on a video and one alone; needles."""
    Image.new("RGB", (50, 20), "red").save(tmp_path / "odd.png")
    needles = [{"path": "odd.png", "prompt": "\nWhich?", "answer": "h"}]
    (tmp_path / "needles.json").write_text(json.dumps(needles))
    both = {"checkpoint": initial, "dtype": "float32"}
    asked = both | {
        "benchmark": "videomme",
        "data": benchmark_folders / "videomme",
        "lmms_model": sizes.KIND,
        "num_frames": 5,
    }
    found = both | {
        "haystack": benchmark_folders / "videomme/data/v0.mp4",
        "needles": tmp_path / "needles.json",
        "min_frames": 4,
        "max_frames": 4,
        "depth_step": 0.5,
        "batch_size": 3,
        "output": tmp_path / "niah",
    }
    results = call_commands(
        "evaluate",
        *(("run", asked | {"limit": n, "output": tmp_path / str(n)}) for n in (3, 1)),
        ("niah", found),
    )
    assert [result.code for result in results] == [0, 0, 0], results
    printed = [json.loads(result.out) for result in results]
    assert [found["questions"] for found in printed[:2]] == [3, 1]
    assert printed[2]["cells"] == 3 and printed[2]["depth"].keys() == {"0", "0.5", "1"}
    several, alone = (read_lines(tmp_path / name / "samples.jsonl") for name in "31")
    assert alone == several[:1] and all(sample["filtered_resps"] for sample in several)


def test_the_plug_in_of_lmms_eval_answers_as_the_model(initial, video):
    question = "Who" + "?" * 42  # 64 tokens, rounded up by either: one program answers
    plugin = TpoJax(str(initial), max_frames_num=4, dtype="float32")
    plugin.task_dict = {"task": {"test": [{}]}}
    how = {"until": ["\n\n"], "max_new_tokens": 3, "temperature": 0.0}
    request = SimpleNamespace(args=(question, how, lambda _: [str(video)], 0, "task", "test"))
    model = load(initial, dtype="float32", mesh={"fsdp": -1})
    expected = model.answer(video, question, num_frames=4, max_new_tokens=3)
    assert plugin.generate_until([request]) == [expected]


def test_curation_with_a_judge(initial, tiny_world, tmp_path):
    """The model answers and judges: a pair is kept where it answers again what it chose."""
    fields = {
        "videos.folder": tiny_world / "videos",
        "videos.limit": 3,
        "rules.world_seed": 5,
        "local.checkpoint": initial,
        "local.dtype": "float32",
        "local.batch_rows": 16,
        "segments.localized": 2,
        "segments.comprehensive": 0,
        "questions.per_segment": 1,
        "judge.asks": "question",
        "balance.localized": 1.0,
        "shards.num_frames": 4,
        "shards.workers": 1,
    }
    roles = {"backend": "local", "num_frames": 4, "max_new_tokens": 3}
    for role in ("answerer", "judge"):
        fields |= {f"{role}.{name}": value for name, value in roles.items()}
    arguments = ["--config=configs/curate_world.py", f"--workdir={tmp_path / 'run'}"]
    arguments += [f"--config.{name}={value}" for name, value in fields.items()]
    (result,) = call_program("curate", arguments)
    assert result.code == 0, result.err
    pairs, failed = (
        read_lines(tmp_path / "run" / name) for name in ("pairs.jsonl", "set_aside.jsonl")
    )
    assert {pair["provenance"]["verdict"] for pair in pairs} == {"yes/no/yes"}
    assert all("the control character" in line["reason"] for line in failed)  # random bytes
    shards = open_shards(tmp_path / "run/shards")
    assert sorted(record.id for record in shards) == sorted(pair["id"] for pair in pairs)
