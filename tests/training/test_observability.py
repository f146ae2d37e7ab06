"""Clock, time left, goodput, profile and Weights & Biases of a run."""

import concurrent.futures
import contextlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import call_program
from tpo_jax.errors import InputError
from tpo_jax.training import clock, watch
from tpo_jax.training.clock import SPANS, StepClock, split
from tpo_jax.training.goodput import JOURNAL, Account, GoodputJournal, read
from tpo_jax.training.metrics import Progress
from tpo_jax.training.watch import Watch, device_memory

ROOT = Path(__file__).resolve().parents[2]

times = st.lists(st.floats(0, 100), min_size=2, max_size=20, unique=True).map(sorted)


def pairs(values):
    return list(zip(values[::2], values[1::2], strict=False))


@given(times, times, st.lists(st.sampled_from(SPANS), min_size=10, max_size=10))
def test_a_split_agrees_with_its_definition_at_every_instant(host, device, names):
    spans = [(name, *span) for name, span in zip(names, pairs(host), strict=False)]
    busy = pairs(device)
    seconds = split(0, 100, spans, busy)
    # The same by definition, between neighbouring edges.
    edges = sorted({0.0, 100.0, *host, *device})
    expected = dict.fromkeys(seconds, 0.0)
    for begin, end in zip(edges, edges[1:], strict=False):
        middle = (begin + end) / 2
        if any(a < middle < b for a, b in busy):
            name = "step"
        else:
            name = next((n for n, a, b in spans if a < middle < b), "other")
        expected[name] += end - begin
    assert seconds == pytest.approx(expected, abs=1e-9)


def test_the_clock_separates_compiling_idle_and_working(monkeypatch):
    step = jax.jit(lambda state, batch: (state + batch, {"x": (state * batch).sum()}))
    step_clock, state = StepClock(), jnp.ones((64, 64))
    try:
        seconds = []
        for _ in range(2):
            for _ in range(3):
                with step_clock.span("input_wait"):
                    batch = jnp.ones((64, 64))
                state, _ = step_clock.dispatch(step, state, batch)
            seconds.append(step_clock.split())
    finally:
        step_clock.close()
    first, second = seconds
    assert first["compile"] > 0 and second["compile"] == 0
    assert first["step"] > 0 and second["step"] > 0
    assert all(value >= -1e-9 for values in seconds for value in values.values())


class FakeTime:
    """A clock that only the test moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def block_until_ready(self):
        """As the metric of a step: the devices finish it `step` seconds later."""
        self.now += self.step


class SameThread:
    """Stands for the watcher's thread: waits at once."""

    def __init__(self, *_):
        self.shutdown = lambda: None

    def submit(self, function, *arguments):
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future


@given(
    compiling=st.floats(0, 1e5),
    step=st.floats(0.01, 100),
    waiting=st.floats(0, 10),
    records=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    more=st.integers(0, 1000),
    resumed=st.integers(0, 100),
)
def test_time_left_is_steps_left_times_a_step_whatever_compiling_took(
    compiling, step, waiting, records, more, resumed
):
    fake, num_steps = FakeTime(), resumed + sum(records) + more
    fake.step = step

    def step_fn(state, _):
        if state == resumed:
            fake.now += compiling
            jax.monitoring.record_event_duration_secs(clock._COMPILED, compiling)
        return state + 1, {"loss": fake}

    with (
        mock.patch.object(clock, "time", fake),
        mock.patch.object(clock, "ThreadPoolExecutor", SameThread),
        contextlib.closing(StepClock()) as step_clock,
    ):
        table, state = Progress(resumed, num_steps), resumed
        for steps in records:
            for _ in range(steps):
                with step_clock.span("input_wait"):
                    fake.now += waiting
                state, _ = step_clock.dispatch(step_fn, state, None)
            with contextlib.redirect_stderr(io.StringIO()) as shown:
                table.show(state, {}, step_clock.split())
            hours, minutes, seconds = shown.getvalue().split()[-1].split(":")
            left = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
            expected = (num_steps - state) * (step + waiting)
            assert left == pytest.approx(expected, abs=1 + 1e-9 * compiling * num_steps)


def line(time, after, until, **seconds):
    empty = dict.fromkeys(("step", *SPANS, "other"), 0.0)
    return {"time": time, "steps": [after, until], "seconds": empty | seconds}


def test_goodput_over_a_kill():
    account = Account(
        [
            {"time": 1000.0},
            line(1030, 0, 10, compile=5.0, step=15.0),
            line(1050, 10, 20, step=19.0, checkpoint=1.0),
            line(1070, 20, 25, step=18.0, input_wait=2.0),  # killed: back to step 20
            {"time": 1100.0},
            line(1125, 20, 30, compile=4.0, step=16.0),
        ]
    )
    assert account.starts == 2 and account.wall == 125
    assert account.seconds == pytest.approx(
        {
            **{"step": 15 + 19 + 16, "lost": 18, "input_wait": 2, "compile": 9},
            **{"checkpoint": 1, "eval": 0, "other": 0, "startup": 10 + 5, "down": 30},
        }
    )
    assert account.goodput == pytest.approx(50 / 125)
    # From a checkpoint inside a stretch, half of it is done again.
    account.add({"time": 1130.0})
    account.add(line(1140, 25, 30, step=10.0))
    assert account.seconds["lost"] == pytest.approx(18 + 8)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 5), st.floats(-9, 99))))
def test_the_account_always_adds_up(moves):
    account, now, at = Account([{"time": 0.0}]), 0.0, 0
    for start, step, more, passed in moves:
        now += passed
        if start:
            at = min(at, step)
            account.add({"time": now})
        else:
            account.add(line(now, at, at + more, step=passed / 2 if passed > 0 else 0.0))
            at += more
        assert sum(account.seconds.values()) == pytest.approx(account.wall, abs=1e-6)
        assert min(account.seconds.values()) >= -1e-6 and -1e-9 <= account.goodput <= 1 + 1e-9


def test_the_journal_continues_after_an_incomplete_line(tmp_path):
    journal = GoodputJournal(tmp_path, started=5.0)
    journal.add(0, 2, line(0, 0, 2, step=1.0)["seconds"])
    journal.close()
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"time": 9, "st')
    assert len(read(tmp_path)) == 2
    journal = GoodputJournal(tmp_path, started=50.0)
    journal.close()
    assert [set(found) for found in read(tmp_path)][1:] == [{"time", "steps", "seconds"}, {"time"}]
    assert journal.account.starts == 2


def test_a_run_records_where_its_time_went(finished_run):
    records = [json.loads(x) for x in (finished_run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        shares = [record[f"time/{name}"] for name in ("step", *SPANS, "other")]
        assert sum(shares) == pytest.approx(1) and min(shares) >= -1e-6
        assert 0 < record["time/goodput"] < 1
    assert records[-1]["time/compile"] == 0
    lines = read(finished_run)
    assert [x["steps"] for x in lines[1:]] == [*([i, i + 1] for i in range(6)), [6, 6]]
    assert records[-1]["time/goodput"] == pytest.approx(Account(lines[:-1]).goodput)
    spent = Account(lines).seconds
    assert spent["checkpoint"] > 0 and spent["startup"] > 0


def test_memory_is_of_the_fullest_device_or_absent(monkeypatch):
    stats = [{"bytes_in_use": 2e9, "peak_bytes_in_use": 3e9}, {"bytes_in_use": 1e9}]
    devices = [types.SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
    monkeypatch.setattr(watch.jax, "local_devices", lambda: devices)
    assert device_memory() == {"memory/in_use": 2.0}
    stats[1]["peak_bytes_in_use"] = 4e9
    assert device_memory() == {"memory/in_use": 2.0, "memory/peak": 4.0}
    monkeypatch.setattr(
        watch.jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: None)]
    )
    assert device_memory() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"profile_steps": "10"}, "--profile_steps=10 must be FIRST:LAST"),
        ({"profile_steps": "3:2"}, "--profile_steps=3:2 must be"),
        ({"profile_steps": "0:2"}, "--profile_steps=0:2 must be"),
        ({"wandb_project": "tpo"}, "--wandb_project=tpo needs the package wandb"),
    ],
)
def test_unusable_profiles_and_projects_are_refused_at_once(given, message, monkeypatch):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=message):
        Watch(**given)


PROFILE = """
import pathlib, sys
from tpo_jax.training.watch import Profiler
profiler = Profiler(range(1, 2), pathlib.Path(sys.argv[1]))
profiler.before(1)
profiler.after(1, {})
"""


# Traces are made in processes of their own: one that has loaded libtpu cannot be profiled.
def test_a_profile_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "profile").touch()
    command = [sys.executable, "-c", PROFILE, str(tmp_path / "profile")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "profile cannot be written: " in result.stderr


def test_asked_steps_are_profiled_once(tiny_arguments, tmp_path):
    refused, work = tmp_path / "refused", tmp_path / "run"
    short = ["--config.train.num_epochs=1", "--config.train.eval_every=0"]
    tried = (
        (refused, "4:9", 2, "--profile_steps=4:9: the run ends at step 3"),
        (work, "2:3", 0, f"profile: {work / 'profile'}"),
        (work, "2:3", 0, "--profile_steps=2:3: already done"),
    )
    results = call_program(
        "train",
        *(
            [*tiny_arguments, *short, f"--workdir={folder}", f"--profile_steps={steps}"]
            for folder, steps, _, _ in tried
        ),
    )
    for (*_, code, message), result in zip(tried, results, strict=True):
        assert (result.code, message in result.err) == (code, True), result.err
    assert len(list((work / "profile").rglob("*.xplane.pb"))) == 1
    assert not (refused / "profile").exists()


def test_profiling_is_refused_where_it_would_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    message = "--profile_steps=2:3: libtpu is loaded .* set JAX_PLATFORMS=cpu"
    with pytest.raises(InputError, match=message):
        Watch(profile_steps="2:3")


def test_weights_and_biases_need_a_key(fake_wandb, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(InputError, match="WANDB_API_KEY"):
        Watch(wandb_project="tpo")


def test_weights_and_biases_get_the_records_of_the_files(finished_run, fake_wandb, monkeypatch):
    """The key is written nowhere."""
    records = [json.loads(x) for x in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **scalars} for step, scalars in fake_wandb.logged] == records
    assert fake_wandb.finished == 1
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb)
    watch.wandb_run("tpo", finished_run, {})  # a resumed run is the same run there
    first, second = fake_wandb.calls
    assert first["project"] == "tpo" and first["id"] == second["id"]
    assert first["resume"] == "allow" and first["config"]["train"]["batch_size"] == 8
    texts = [path.read_bytes() for path in finished_run.rglob("*") if path.is_file()]
    assert not [text for text in texts if fake_wandb.key.encode() in text]
