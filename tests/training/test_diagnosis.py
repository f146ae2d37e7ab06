"""Every rule of the run report fires on its problem and is silent on a healthy run."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from tests.commands import call
from tpo_jax.errors import InputError
from tpo_jax.training import diagnosis, run_page
from tpo_jax.training.clock import SPANS
from tpo_jax.training.diagnosis import RULES, diagnose
from tpo_jax.training.experiment import base
from tpo_jax.training.goodput import Account
from tpo_jax.training.run_record import Run

SIZE = 60
NOISE = np.random.default_rng(0).normal(size=(8, SIZE))
RISING = np.linspace(0, 1, SIZE) ** 0.5


def journal(**seconds) -> list[dict]:
    spent = dict.fromkeys(("step", *SPANS, "other"), 0.0) | {"step": 900.0, "compile": 20.0}
    spent |= seconds
    record = {"time": 1000 + sum(spent.values()), "steps": [0, SIZE], "seconds": spent}
    return [{"time": 1000.0}, record]


def healthy() -> Run:
    """Return a run of noisy batches: margins rise, chosen answers hold, lengths have no effect."""
    return Run(
        json.loads(base().to_json_best_effort()),
        np.arange(1, SIZE + 1),
        {
            "losses/dpo": math.log(2) * (1 - 0.5 * RISING) + 0.001 * (NOISE[0] - NOISE[0, 0]),
            "rewards/margins": 2 * RISING + 0.2 * NOISE[1],
            "rewards/accuracies": np.clip(0.5 + 0.45 * RISING + 0.05 * NOISE[2], 0, 1),
            "kl/chosen": 0.3 * NOISE[3],
            "kl/rejected": 20 * RISING + NOISE[4],
            "lengths/chosen": 20 + NOISE[5],
            "lengths/rejected": 19 + NOISE[6],
            "grad_norm": np.exp(0.3 * NOISE[7]),
            "time/compile": np.eye(1, SIZE)[0] * 0.9,
            "skipped": np.zeros(SIZE),
        },
        Account(journal()),
    )


def with_series(**changes) -> Run:
    run = healthy()
    return dataclasses.replace(run, series=run.series | changes)


def with_journal(lines: list[dict]) -> Run:
    return dataclasses.replace(healthy(), account=Account(lines))


def restarted() -> list[dict]:
    first, second = journal(), journal()
    second[0]["time"] += 2000
    second[1]["time"] += 2000
    second[1]["steps"] = [10, SIZE]
    return first + second


FIRES = {
    "first_loss": with_series(**{"losses/dpo": healthy().series["losses/dpo"] + 0.02}),
    "chosen_falls": with_series(**{"kl/chosen": 5 * RISING + 0.3 * NOISE[3]}),
    "margins_flat": with_series(**{"rewards/margins": 0.2 * NOISE[1]}),
    "too_easy": with_series(**{"rewards/accuracies": np.minimum(1, 0.5 + np.arange(SIZE))}),
    "saturated": with_series(**{"rewards/margins": 20 * RISING + NOISE[1]}),
    "length_exploited": with_series(
        **{"rewards/margins": 2 * RISING + 0.2 * (NOISE[5] - NOISE[6]) + 0.05 * NOISE[1]}
    ),
    "lengths_differ": with_series(**{"lengths/rejected": 10 + NOISE[6]}),
    "gradient_jumps": with_series(
        grad_norm=np.where(np.arange(SIZE) == 40, 50, healthy().series["grad_norm"])
    ),
    "input_bound": with_journal(journal(input_wait=200.0)),
    "checkpoint_bound": with_journal(journal(checkpoint=100.0)),
    "work_lost": with_journal(restarted()),
    "pairs_skipped": with_series(skipped=np.arange(SIZE) // 20),
    "compiles_again": with_series(**{"time/compile": np.eye(1, SIZE)[0] + np.eye(1, SIZE, 7)[0]}),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_fires_on_its_problem_alone(rule):
    assert diagnose(healthy()) == []
    finding = rule(FIRES[rule.__name__])
    assert diagnose(FIRES[rule.__name__]) == [finding]
    assert finding.title and re.search(r"\d", finding.evidence) and finding.advice


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_is_silent_on_too_few_records(rule):
    run = FIRES[rule.__name__]
    few = {name: values[:3] for name, values in run.series.items()}
    short = Run({}, run.steps[:3], few | {"losses/dpo": few["losses/dpo"] * np.nan}, Account())
    if rule.__name__ != "compiles_again":  # nothing but a count of the records
        assert rule(short) is None
    assert rule(Run({}, run.steps, {}, Account())) is None


def test_near_misses_do_not_fire():
    """Runs that resemble the problem of a rule and do not have it."""
    other_loss = with_series(**{"losses/dpo": np.full(SIZE, np.nan)})
    later = dataclasses.replace(FIRES["first_loss"], steps=np.arange(10, SIZE + 10))
    # Both fall together: that is no margin; both rise with time: that is no correlation.
    together = with_series(**{"kl/chosen": 5 * RISING, "rewards/margins": 0.5 + 0.2 * NOISE[1]})
    trend = with_series(**{"lengths/chosen": 20 + 5 * np.arange(SIZE) / SIZE + 0.1 * NOISE[5]})
    resumed = dataclasses.replace(FIRES["compiles_again"], account=Account(restarted()))
    anchored = dataclasses.replace(
        FIRES["first_loss"], config={"data": {"reference_view": "anchor"}}
    )
    assert diagnosis.first_loss(other_loss) is diagnosis.first_loss(later) is None
    assert diagnosis.first_loss(anchored) is None
    others = dataclasses.replace(FIRES["first_loss"], config={"model": {"reference": "base"}})
    assert diagnosis.first_loss(others) is None
    assert diagnosis.chosen_falls(together) is None
    assert diagnosis.length_exploited(trend) is None
    assert diagnosis.compiles_again(resumed) is None


def write_run(workdir, run: Run) -> None:
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(run.config))
    with (workdir / "metrics.jsonl").open("w") as file:
        for i, step in enumerate(run.steps):
            values = {name: float(values[i]) for name, values in run.series.items()}
            file.write(json.dumps({"step": int(step), **values}) + "\n")
        file.write('{"step": 99, "los')  # in progress
    (workdir / "goodput.jsonl").write_text("".join(json.dumps(x) + "\n" for x in journal()))


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(tmp_path):
    run = FIRES["chosen_falls"]
    run.config["model"]["checkpoint"] = "<script>alert(1)</script>"
    workdir = tmp_path / "run & <b>"
    write_run(workdir, run)
    path = run_page.write(workdir)
    assert {path.name for path in workdir.iterdir()} == {
        "report.html",
        "config.json",
        "metrics.jsonl",
        "goodput.jsonl",
    } and path == workdir / "report.html"
    text = path.read_text()
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=\"(?!#)|@import|url\((?!#)", text)
    assert text.count("<svg") == 1 and text.count("<article>") == 1
    finding = diagnosis.chosen_falls(run)
    assert finding.title in text and finding.evidence in text
    assert f"{SIZE} records, steps 1 to {SIZE}" in text and "Goodput 97.8 %" in text


def test_curves_are_thinned_and_equal_for_equal_runs():
    run, many = healthy(), 5000
    long = dataclasses.replace(
        run,
        steps=np.arange(many),
        series={"losses/total": np.where(np.arange(many) < 9, np.nan, 1.0)},
    )
    assert run_page.curves(run) == run_page.curves(healthy())
    assert len(run_page.curves(long)) < 60_000


def test_held_out_curves_are_drawn_beside_those_of_training():
    few = np.where(np.arange(SIZE) % 10 == 9, 0.4, np.nan)
    run = with_series(**{"eval/rewards/margins": few, "eval/lengths/chosen": few})
    text = run_page.curves(run)
    assert text.count("margins, held out") == 1 and "chosen, held out" not in text
    assert "held out" not in run_page.curves(healthy())


def test_the_command(tmp_path):
    write_run(tmp_path / "run", healthy())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/metrics.jsonl").write_text('{"stop": 1}\n')
    (tmp_path / "broken/config.json").write_text("{}")
    good, empty, broken = call(
        "report", *({"workdir": tmp_path / name} for name in ("run", "nowhere", "broken"))
    )
    assert good == (0, f"{tmp_path / 'run/report.html'}\n", "")
    assert empty.code == 2 and "nowhere/metrics.jsonl: no such file" in empty.err
    assert broken.code == 2 and "not what `train` writes" in broken.err
    assert empty.err.count("\n") == broken.err.count("\n") == 1
    (tmp_path / "broken/metrics.jsonl").write_text('{"step"')
    with pytest.raises(InputError, match="no record yet"):
        run_page.write(tmp_path / "broken")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metrics.jsonl",
            '{"step": 1, "losses/total": 1%s}\n' % ("0" * 400),
            "metrics.jsonl:1: not",
        ),
        ("metrics.jsonl", '{"step": 1, "losses/total": [1, 2]}\n', "metrics.jsonl:1: not"),
        ("metrics.jsonl", '{"step": 1%s}\n' % ("0" * 30), "metrics.jsonl:1: not"),
        ("metrics.jsonl", "\n\n", "no record yet"),
        ("goodput.jsonl", '{"time": null}\n', "goodput.jsonl:1: not"),
        ("goodput.jsonl", '{"time": 0}\n{"time": NaN}\n', "goodput.jsonl:2: not"),
        ("goodput.jsonl", '{"time": 5, "steps": [0, 1], "seconds": {"<b>": 1}}\n', ":1: not"),
        ("goodput.jsonl", "[" * 100_000 + "\n", "goodput.jsonl:1: not JSON"),
        ("config.json", "[" * 100_000, "config.json: not what"),
    ],
)
def test_records_of_other_programs_are_one_line(tmp_path, name, content, message):
    write_run(tmp_path / "run", healthy())
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(InputError, match=message):
        run_page.write(tmp_path / "run")


def test_values_that_cannot_be_shown_do_not_break_the_page(tmp_path):
    run = healthy()
    run.config["model"]["checkpoint"] = "\ud800"
    unknown = dataclasses.replace(run, series={"of/nobody": np.ones(SIZE)})
    write_run(tmp_path / "run", unknown)
    assert "no metric of those" in run_page.write(tmp_path / "run").read_text()
