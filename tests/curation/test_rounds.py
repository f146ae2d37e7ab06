"""Rounds of curation and training with a tiny model on the synthetic world."""

import copy
import gc
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.commands import call_program
from tests.config_files import load
from tests.curation.conftest import SEED, write_config
from tests.curation.test_curate import journaled, pairs_of
from tests.tiny_run import final_state, metrics, same_bits
from tpo_jax import families
from tpo_jax import rounds as command
from tpo_jax.curation.stages import Judged
from tpo_jax.errors import InputError
from tpo_jax.rounds import run_rounds
from tpo_jax.training.experiment import base
from tpo_jax.training.recorder import Recorder

STEPS = 3


@pytest.fixture(autouse=True, scope="module")
def no_charts():
    """Draw no charts, which take most of the time of small rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tpo_jax.curation.run.charts", lambda numbers, units: {})
        patch.setattr("tpo_jax.training.run_page.curves", lambda run: "")
        yield


@pytest.fixture(scope="module")
def given(checkpoint, world_videos):
    """Configs of rounds that take seconds: the model answers, the rules of the world do the rest.

    Its random weights are always wrong, so a judge that inverts every verdict keeps what it says.
    """
    curation, training = load("curate_world").get_config(), base()
    curation.videos.folder, curation.rules.world_seed = str(world_videos), SEED
    curation.rules.judge_slips = 1.0
    # One shape in all rounds, so that one program is compiled.
    curation.segments.localized, curation.segments.comprehensive = 4, 0
    curation.segments.min_seconds, curation.questions.per_segment = 20.0, 1
    curation.answers.localized_rejected, curation.balance.localized = ("rest",), 1.0
    curation.answerer.backend, curation.local.dtype = "local", "float32"
    curation.answerer.num_frames, curation.answerer.max_new_tokens = 4, 8
    curation.local.batch_rows = 8
    curation.shards.workers, curation.shards.num_frames = 1, 4
    training.model.checkpoint = str(checkpoint)
    training.data.num_frames, training.data.workers = 4, 0
    training.data.prefix_multiple, training.data.response_multiple = 64, 32
    training.objective.beta, training.objective.alpha = 0.3, 0.0
    training.compute.dtype, training.compute.remat = "float32", "none"
    training.train.batch_size, training.train.num_steps = 8, STEPS
    training.train.learning_rate = 3e-5  # more, and all its answers are the same in round 2
    training.train.log_every = training.train.checkpoint_every = 1
    return curation, training


@pytest.fixture
def configs(given):
    return copy.deepcopy(given)


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    """Two rounds with the first model as the reference: the directory, what they returned, and how
    many bytes the devices held when each stage began.
    """
    workdir, held = tmp_path_factory.mktemp("rounds") / "run", []
    gc.collect()  # of the tests before
    with pytest.MonkeyPatch.context() as patch:
        for name in ("curate", "train"):
            real = getattr(command, name)

            def noted(*arguments, real=real, **named):
                held.append(sum(x.nbytes for x in jax.live_arrays()))
                return real(*arguments, **named)

            patch.setattr(command, name, noted)
        return workdir, run_rounds(*copy.deepcopy(given), workdir, 2, "first"), held


def test_every_round_starts_from_the_model_before(finished, given, checkpoint):
    workdir, found, held = finished
    model = workdir / "round_1" / "training" / "model"
    assert found["model"] == str(workdir / "round_2" / "training" / "model")
    saved = [
        json.loads((workdir / f"round_{n}" / "training" / "config.json").read_text())
        for n in (1, 2)
    ]
    assert [config["model"]["checkpoint"] for config in saved] == [str(checkpoint), str(model)]
    assert [config["model"]["reference"] for config in saved] == ["", str(checkpoint)]
    losses = [metrics(workdir / f"round_{n}" / "training")[0]["losses/dpo"] for n in (1, 2)]
    assert all((workdir / f"round_{n}" / "training" / "report.html").exists() for n in (1, 2))
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert abs(losses[1] - np.log(2)) > 1e-3  # of two models
    # Neither stage leaves its model on the devices.
    params = jax.tree.leaves(families.abstract_params(families.preset("tiny_longva")))
    assert max(held) - min(held) < sum(x.size * x.dtype.itemsize for x in params) / 20


def test_rounds_ask_other_questions_of_the_same_videos(finished):
    pairs = [pairs_of(finished[0] / f"round_{n}" / "curation") for n in (1, 2)]
    asked = [{(pair["video"], pair["prompt"], str(pair["segment"])) for pair in r} for r in pairs]
    assert not asked[0] & asked[1]
    assert {pair["video"] for pair in pairs[0]} & {pair["video"] for pair in pairs[1]}


def test_what_a_round_took_and_made_is_told(finished):
    workdir, found, _ = finished
    assert [report["round"] for report in found["rounds"]] == [1, 2]
    for number, report in enumerate(found["rounds"], 1):
        curation, training = report["curation"], report["training"]
        pairs = pairs_of(workdir / f"round_{number}" / "curation")
        assert curation["pairs"] == len(pairs) <= curation["questions"]
        assert curation["yields"]["judged"]["items"] >= len(pairs) > 0
        assert training["steps"] == STEPS and training["starts"] == curation["starts"] == 1
        assert curation["tokens"] == 0 and "cost" not in curation  # no endpoint, no prices
        for stage in (curation, training):
            assert stage["device seconds"] == pytest.approx(8 * stage["seconds"], abs=0.5)
            assert stage["seconds"] > 0
    line = command.told(found["rounds"][1], rounds=2)
    assert line.startswith("round 2 of 2: ") and f"{STEPS} steps in" in line and "cost" not in line


def test_rounds_that_are_done_are_not_repeated(finished, configs, monkeypatch):
    workdir, found, _ = finished
    for name in ("curate", "train"):
        monkeypatch.setattr(command, name, None)  # not reached
    assert run_rounds(*configs, workdir, 2, "first") == found
    one = run_rounds(*configs, workdir, 1, "first")
    assert one["rounds"] == found["rounds"][:1]
    assert one["model"] == str(workdir / "round_1" / "training" / "model")


class Killed(BaseException):
    """Stands for the end of the process at the place where it is raised."""


@pytest.fixture
def first_done(finished, tmp_path):
    """A directory in which round 1 is done and round 2 has not begun."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns("round_2"))
    journal = workdir / "rounds.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(x for x in lines if '"round": 2' not in x))
    return workdir


def test_killed_in_both_stages_of_round_2_it_ends_with_the_same_model(
    finished, first_done, configs, monkeypatch
):
    workdir, journal = first_done, first_done / "rounds.jsonl"

    def killed_at(owner, name, number):
        real, calls = getattr(owner, name), []

        def call(*arguments, **named):
            calls.append(None)
            if len(calls) == number:
                raise Killed
            return real(*arguments, **named)

        return owner, name, call

    for place in (killed_at(Judged, "finish", 3), killed_at(Recorder, "write", 2)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(*place)
            run_rounds(*configs, workdir, 2, "first")
        # As a kill leaves it: a start without an end.
        *whole, last = journal.read_text().splitlines(keepends=True)
        assert '"seconds"' in last
        journal.write_text("".join(whole) + last[:10])
    found = run_rounds(*configs, workdir, 2, "first")
    first, second = found["rounds"]
    assert first == finished[1]["rounds"][0] | {"model": first["model"]}
    assert second["model"] == found["model"] == str(workdir / "round_2" / "training" / "model")
    assert second["curation"]["starts"] == second["training"]["starts"] == 2
    assert second["curation"]["yields"] == finished[1]["rounds"][1]["curation"]["yields"]
    assert pairs_of(workdir / "round_2/curation") == pairs_of(finished[0] / "round_2/curation")
    ours, theirs = (folder / "round_2" / "training" for folder in (workdir, finished[0]))
    assert metrics(ours) == metrics(theirs)
    assert same_bits(final_state(ours, STEPS), final_state(theirs, STEPS))
    spent = [json.loads(x) for x in journal.read_text().splitlines() if '"seconds"' in x]
    assert len(spent) == 6 and all(x["seconds"] > 0 for x in spent)


def test_other_settings_are_refused(finished, configs):
    workdir, _, _ = finished
    before = (workdir / "rounds.jsonl").read_bytes()
    curation, training = configs
    with pytest.raises(InputError, match="rounds.jsonl: .*reference 'first', not 'last'"):
        run_rounds(curation, training, workdir, 3)
    curation.questions.per_segment = 2
    with pytest.raises(InputError, match=r"questions\.per_segment 1, not 2"):
        run_rounds(curation, training, workdir, 3, "first")
    curation.questions.per_segment, training.train.learning_rate = 1, 1e-4
    message = r"round 1: .*config.json: .* otherwise \(train.learning_rate: 3e-05 -> 0.0001\)"
    with pytest.raises(InputError, match=message):
        run_rounds(curation, training, workdir, 3, "first")
    assert (workdir / "rounds.jsonl").read_bytes() == before


def test_a_judge_that_keeps_nothing_ends_with_the_yields_and_the_last_model(
    finished, configs, tmp_path
):
    curation, training = configs
    curation.rules.judge_slips = 0.0
    message = r"^round 1: .*no pair is left, .*questions \d+, answers \d+, judged 0;"
    with pytest.raises(InputError, match=message):
        run_rounds(curation, training, tmp_path / "none", 2)
    assert not (tmp_path / "none" / "round_1" / "training").exists()

    workdir = shutil.copytree(finished[0], tmp_path / "run")
    curation.rules.judge_slips = 1.0
    curation.videos.folder = str(tmp_path / "videos")  # one that is no video; a folder may change
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("none")
    with pytest.raises(InputError, match="no pair is left.* videos 0, .*") as error:
        run_rounds(curation, training, workdir, 3, "first")
    text = str(error.value)
    assert text.startswith("round 3: ") and "\n" not in text
    assert text.endswith(f"; {workdir / 'round_2' / 'training' / 'model'} is the last model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "--rounds=0 must be 1 or more"),
        ({"reference": "second"}, "--reference=second must be one of last, first"),
        ({"model.checkpoint": ""}, "--config.model.checkpoint is empty"),
        ({"model.preset": "tiny_longva"}, "--config.model.preset=tiny_longva: rounds curate with"),
        ({"model.adapters": "a"}, "--config.model.adapters=a: rounds curate with"),
        ({"model.reference": "a"}, "--config.model.reference=a: leave it empty"),
        ({"data.shards": "a"}, "--config.data.shards=a: leave it empty"),
        ({"data.reference": "a"}, "--config.data.reference=a: leave it empty"),
        ({"data.shards": "gs://a/b"}, "--config.data.shards=gs://a/b: must be on this machine"),
        ({"videos.folder": "gs://a/b"}, "--curate.videos.folder=gs://a/b: must be on this machine"),
        ({"videos.folder": ""}, "videos.folder is empty"),
        ({"answerer.backend": "openai"}, "--curate.answerer.backend=openai with model=''"),
        ({"answerer.model": "a"}, "--curate.answerer.backend=local with model='a'"),
        ({"local.checkpoint": "a"}, "--curate.local.checkpoint=a: leave it empty, rounds set it"),
        ({"judge.backend": "openai"}, "judge has no model"),
        ({"objective.beta": 0.0}, "objective.beta=0.0 must be above 0"),
        ({"objective.token_kl": 0.1, "reference": "first"}, "model.reference=.*reads the cached"),
        ({"model.checkpoint": "nowhere"}, "nowhere: no such model directory"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(configs, tmp_path, changes, message):
    rounds, reference = changes.pop("rounds", 2), changes.pop("reference", "last")
    curation, training = configs
    for field, value in changes.items():
        section, name = field.split(".")
        setattr((curation if section in curation else training)[section], name, value)
    with pytest.raises(InputError, match=message) as error:
        run_rounds(curation, training, tmp_path / "run", rounds, reference)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_paid_replies_are_counted_and_limited_over_all_rounds(
    configs, endpoint, tmp_path, monkeypatch
):
    """Every reply costs 1.1: a hundred tokens in and ten out."""
    curation, training = configs
    endpoint.reply = lambda body: "1: Yes\n2: No\n3: Yes"
    curation.judge.backend, curation.judge.num_frames = "openai", 0
    curation.openai.url, curation.openai.model = endpoint.url, "fake"
    curation.openai.key_variable, curation.openai.concurrency = "CURATION_TEST_KEY", 1
    curation.openai.price_in = curation.openai.price_out = 1e4
    monkeypatch.setattr(command, "train", lambda config, folder: None)  # asked to stop
    workdir = tmp_path / "run"
    assert run_rounds(curation, training, workdir, 2) is None
    lines = [json.loads(x) for x in (workdir / "rounds.jsonl").read_text().splitlines()]
    [made] = [line["result"] for line in lines if "result" in line]
    assert made["pairs"] > 2 and made["tokens"] == 110 * made["pairs"] == 110 * endpoint.calls
    assert made["cost"] == pytest.approx(1.1 * endpoint.calls)

    def trained(config, folder):
        folder.mkdir()
        for name in ("metrics.jsonl", "config.json"):
            text = config.to_json_best_effort() if name == "config.json" else '{"step": 3}\n'
            (folder / name).write_text(text)
        return shutil.copytree(config.model.checkpoint, folder / "model")

    monkeypatch.setattr(command, "train", trained)
    monkeypatch.setattr(command.run_page, "write", lambda folder: None)
    before = endpoint.calls
    limit = made["cost"] + 2.5  # two more replies
    with pytest.raises(InputError, match=f"^round 2: --max_cost={limit:g}: .* raise it to resume"):
        run_rounds(curation, training, workdir, 2, max_cost=limit)
    assert endpoint.calls == before + 2


def written(configs, folder) -> list[str]:
    """Write the configs as files; return the flags that name them."""
    pairs = zip(("curate", "config"), configs, strict=True)
    return [f"--{name}={write_config(folder / f'{name}.py', config)}" for name, config in pairs]


def test_the_command_prints_what_rounds_took(finished, given, tmp_path):
    workdir, found, _ = finished
    flags = [*written(given, tmp_path), f"--workdir={workdir}", "--reference=first"]
    whole, wrong, field, bucket = call_program(
        "rounds",
        [*flags, "--rounds=2"],
        [*flags, "--rounds=0"],
        [*flags, "--rounds=2", "--curate.videos.foldr=a"],
        [*flags[1:], "--rounds=2", "--curate=gs://a/b.py"],
    )
    assert whole.code == 0 and json.loads(whole.out) == found
    assert whole.err.splitlines()[-1] == command.told(found["rounds"][1], rounds=2)
    assert (wrong.code, wrong.out, wrong.err) == (2, "", "error: --rounds=0 must be 1 or more\n")
    assert field.code == 2 and "no such field: foldr; did you mean folder?" in field.err
    assert bucket.err == "error: curate=gs://a/b.py: must be a file on this machine\n"


@pytest.mark.slow
def test_two_processes_killed_in_round_2_resume_it(
    finished, first_done, given, tmp_path, start_two
):
    """Two processes of two devices each and one of eight: the same journals and pairs."""
    workdir = first_done
    flags = [*written(given, tmp_path), f"--workdir={workdir}", "--rounds=2", "--reference=first"]
    group, records = (
        start_two("rounds", *flags, devices=2),
        workdir / "round_2/training/metrics.jsonl",
    )
    deadline = time.monotonic() + 900
    while not records.exists() and time.monotonic() < deadline:
        assert group.poll() is None
        time.sleep(0.05)
    os.killpg(group.pid, signal.SIGKILL)
    group.communicate()
    done = workdir / "round_1" / "training" / "metrics.jsonl"
    before = done.stat().st_mtime_ns
    group = start_two("rounds", *flags, devices=2)
    out, err = group.communicate(timeout=900)
    assert group.returncode == 0, err
    assert out.count('"rounds": ') == 1 and done.stat().st_mtime_ns == before
    [first, second] = json.JSONDecoder().raw_decode(out[out.index("{") :])[0][
        "rounds"
    ]  # after Gloo
    assert [first["training"]["starts"], second["curation"]["starts"]] == [1, 1]
    assert second["training"]["starts"] == 2 and second["training"]["steps"] == STEPS
    ours, theirs = (folder / "round_2" / "curation" for folder in (workdir, finished[0]))
    assert pairs_of(ours) == pairs_of(theirs) and journaled(ours) == journaled(theirs)
    assert [record["step"] for record in metrics(records.parent)] == [1, 2, 3]
