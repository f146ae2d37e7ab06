"""The plug-in's answers; the published lmms-eval gets with them what `evaluate run` gets."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tests.commands import ROOT, call
from tests.evaluation.folders import FOLDERS
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.errors import InputError
from tpo_jax.evaluation import lmms_plugin
from tpo_jax.evaluation.benchmarks import ask
from tpo_jax.evaluation.lmms_plugin import TpoJax
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

TASKS = {
    "videomme": "videomme/videomme.yaml",
    "videomme_w_subtitle": "videomme/videomme_w_subtitle.yaml",
    "mlvu_dev": "mlvu/mlvu_dev.yaml",
    "longvideobench_val_v": "longvideobench/longvideobench_val_v.yaml",
    "longvideobench_val_i": "longvideobench/longvideobench_val_i.yaml",
    "lvbench": "lvbench/lvbench.yaml",
}


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with lmms-eval and this package, entry points included."""
    if "LMMS_EVAL_PYTHON" in os.environ:
        return os.environ["LMMS_EVAL_PYTHON"]
    if not find_spec("lmms_eval"):
        pytest.skip("lmms-eval is not installed: LMMS_EVAL_PYTHON may name a Python that has it")
    return sys.executable


@pytest.fixture(scope="module")
def model(tmp_path_factory, benchmark_folders):
    """A random model whose tokenizer knows the prompts."""
    folder = tmp_path_factory.mktemp("plugin")
    texts = [
        question.prompt
        for name in TASKS
        for question in ask(benchmark_folders / FOLDERS[name], name)[0]
    ]
    save_tokenizer(train_tokenizer(texts, vocab_size=500), folder / "tokenizer")
    config = families.preset("tiny_longva")
    params = random_params(config)
    # Layers of the usual scale hardly tell one question from the next.
    params["decoder"]["layers"] = jax.tree.map(lambda x: 2 * x, params["decoder"]["layers"])
    save_model(folder / "model", config, params, folder / "tokenizer")
    return folder / "model"


@pytest.fixture(scope="module")
def plugin(model) -> TpoJax:
    return TpoJax(str(model), max_frames_num=4, batch_size="2", dtype="float32")


def requests(plugin, questions, **settings) -> list:
    """Instances as lmms-eval makes them, as far as a model looks at them."""
    plugin.task_dict = {"videomme": {"test": [question.doc for question in questions]}}
    settings = {"until": ["\n\n"], "max_new_tokens": 4, "temperature": 0.0} | settings
    return [
        SimpleNamespace(
            args=(q.prompt, settings, lambda _, q=q: [str(q.video)], i, "videomme", "test")
        )
        for i, q in enumerate(questions)
    ]


def test_answers_come_in_the_order_of_the_requests(plugin, benchmark_folders) -> None:
    questions, _ = ask(benchmark_folders / "videomme", "videomme")
    asked = requests(plugin, questions)
    answers = plugin.generate_until(asked)
    order = [4, 0, 6, 2, 1, 5, 3]
    assert plugin.generate_until([asked[i] for i in order]) == [answers[i] for i in order]
    assert len(set(answers)) > 2


def test_prompts_are_those_the_checkpoint_and_the_arguments_ask_for(
    plugin, model, benchmark_folders, tmp_path
) -> None:
    shutil.copytree(model, tmp_path / "asks")
    values = json.loads((model / "config.json").read_text())
    values["model"]["time_instruction"] = "newline"
    (tmp_path / "asks/config.json").write_text(json.dumps(values))
    questions = ask(benchmark_folders / "videomme", "videomme")[0][:3]

    def answers(folder, **more):
        made = TpoJax(str(folder), max_frames_num=4, batch_size="2", dtype="float32", **more)
        return made.generate_until(requests(made, questions))

    plain = plugin.generate_until(requests(plugin, questions))
    asked = answers(tmp_path / "asks")
    assert asked == answers(model, time_instruction="newline") != plain
    assert answers(tmp_path / "asks", time_instruction="none") == plain
    assert answers(model, prompt_style="dpo_trainer") != plain
    for name in ("time_instruction", "prompt_style", "weights"):
        with pytest.raises(InputError, match=f"{name}='never' must be one of"):
            TpoJax(str(model), **{name: "never"})


def test_a_model_is_loaded_as_the_arguments_say(model, benchmark_folders, monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(lmms_plugin, "load", lambda folder, **how: taken.append((folder, how)))
    TpoJax(str(model), adapters="lora", weights="int8", device="cuda", max_batch_size=4)
    ((folder, how),) = taken
    assert (folder, how["adapters"], how["weights"]) == (str(model), "lora", "int8")
    assert not how.keys() & {"device", "max_batch_size"}


def test_requests_that_cannot_be_answered(plugin, benchmark_folders, tmp_path, capsys) -> None:
    questions, _ = ask(benchmark_folders / "videomme", "videomme")
    lost = [questions[0]._replace(video=tmp_path / "lost.mp4"), questions[1]]
    with pytest.raises(InputError, match="lost.mp4.*allow_missing=True"):
        plugin.generate_until(requests(plugin, lost))
    plugin._allow_missing = True
    answers = plugin.generate_until(requests(plugin, lost))
    plugin._allow_missing = False
    assert answers[0] == "" and answers[1]
    assert "lost.mp4" in capsys.readouterr().out
    with pytest.raises(InputError, match="num_beams"):
        plugin.generate_until(requests(plugin, questions, num_beams=4))
    (request,) = requests(plugin, questions[:1])
    request.args = (*request.args[:2], lambda doc: ["a.mp4", "b.mp4"], *request.args[3:])
    with pytest.raises(InputError, match="one video or on images"):
        plugin.generate_until([request])
    request.args = (*request.args[:2], lambda doc: [], *request.args[3:])
    assert plugin.generate_until([request])[0]  # text alone
    with pytest.raises(InputError, match="generate_until"):
        plugin.loglikelihood([])


def write_tasks(folder, package, data) -> None:
    """The tasks of the package, their rows from local files."""
    for name, path in TASKS.items():
        files = sorted(str(file) for file in (data / FOLDERS[name]).glob("*/*.parquet"))
        task = {
            "include": str(package / "lmms_eval/tasks" / path),
            "task": f"local_{name}",
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": files}},
            "test_split": "test",
        }
        (folder / f"local_{name}.yaml").write_text(json.dumps(task))


# One task that guesses at a time: the next would continue its sequence of random numbers.
INTERLEAVED = "longvideobench_val_i"


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [[t for t in TASKS if t != INTERLEAVED], [INTERLEAVED]])
def test_same_answers_samples_and_results(
    tasks, python, model, benchmark_folders, compiled, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    find = "import lmms_eval, pathlib; print(pathlib.Path(lmms_eval.__file__).parents[1])"
    where = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True)
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", Path(where.stdout.splitlines()[-1].strip()), benchmark_folders)
    arguments = {
        "model": "tpo_jax",
        "model_args": f"pretrained={model},max_frames_num=4,dtype=float32",
        "tasks": ",".join(f"local_{name}" for name in tasks),
        "include_path": tmp_path / "tasks",
        "batch_size": 2,
        "output_path": tmp_path / "theirs",
    }
    command = [python, "-m", "lmms_eval", "--log_samples"]
    command += [word for k, v in arguments.items() for word in (f"--{k}", str(v))]
    environment = os.environ | {
        "HF_HOME": str(benchmark_folders),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    child = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    # It ends with 0 where a run has failed, too.
    found = list((tmp_path / "theirs").rglob("*_results.json"))
    assert child.returncode == 0 and len(found) == 1, child.stderr[-3000:]
    ours = call(
        "evaluate",
        *(
            {
                "benchmark": name,
                "data": benchmark_folders / FOLDERS[name],
                "checkpoint": model,
                "output": tmp_path / name,
                "num_frames": 0 if name == INTERLEAVED else 4,
                "dtype": "float32",
                "batch_size": 2,
            }
            for name in tasks
        ),
        command="run",
    )
    theirs, answers = json.loads(found[0].read_text())["results"], set()
    for name, result in zip(tasks, ours, strict=True):
        assert result.code == 0, result.err
        expected = json.loads(result.out)["results"][name] | {"alias": f"local_{name}"}
        their = {k: v for k, v in theirs[f"local_{name}"].items() if "submission" not in k}
        their.pop("samples", None)
        assert their.keys() == expected.keys()
        for key, value in expected.items():
            assert their[key] == (pytest.approx(value) if isinstance(value, float) else value), key
        (file,) = (tmp_path / "theirs").rglob(f"*_samples_local_{name}.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        mine = [json.loads(x) for x in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        ignored = ("doc_hash", "input_media")
        for sample, one in zip(samples, mine, strict=True):
            assert {k: v for k, v in one.items() if k not in ignored} == {
                k: v for k, v in sample.items() if k not in ignored
            }
        answers |= {sample["filtered_resps"] for sample in mine}
    assert len(answers) > 3 * len(tasks)  # of 7 each
