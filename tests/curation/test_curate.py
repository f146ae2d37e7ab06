"""Whole curation runs: their outputs, which neither kills nor the split into parts change."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.config_files import load
from tests.curation.conftest import SEED, write_config
from tests.curation.fake_endpoint import FAULTS, play, words
from tpo_jax.curation import journals, projection
from tpo_jax.curation.clients import VideoView
from tpo_jax.curation.config import read
from tpo_jax.curation.ledger import Ledger
from tpo_jax.curation.run import curate
from tpo_jax.curation.views import View
from tpo_jax.data.preparation import Settings, prepare
from tpo_jax.data.shards import open_shards
from tpo_jax.errors import InputError
from tpo_jax.io import journal


def pairs_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "pairs.jsonl").read_text().splitlines()]


def journaled(workdir) -> dict[str, list[str]]:
    """Return the journal lines of all parts per stage, sorted."""
    found = {}
    for path in workdir.glob("*.jsonl"):
        stage = path.name.split(".")[0]
        if stage not in ("pairs", "set_aside", "costs"):
            found.setdefault(stage, []).extend(path.read_text().splitlines()[1:])
    return {stage: sorted(lines) for stage, lines in found.items()}


@pytest.fixture(scope="module")
def finished(world_videos, tmp_path_factory):
    """A whole run with scripted replies: its directory and its report."""
    config = load("curate_world").get_config()
    config.videos.folder = str(world_videos)
    config.rules.world_seed = SEED
    config.segments.localized, config.segments.comprehensive = 3, 3
    config.shards.workers, config.shards.num_frames = 1, 4
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, curate(config, workdir)


def test_pairs_become_shards_and_a_card(finished):
    workdir, report = finished
    pairs = pairs_of(workdir)
    assert report["kinds"] == {"comprehensive": len(pairs) // 2, "localized": len(pairs) // 2}
    shards = open_shards(workdir / "shards")
    assert sorted(r.id for r in shards) == sorted(pair["id"] for pair in pairs)
    assert {r.provenance.verdict for r in shards} == {"yes/no/yes"}
    for pair in pairs:
        assert (pair["segment"] is None) == (pair["kind"] == "comprehensive")
    card = (workdir / "README.md").read_text()
    for name, counts in report["yields"].items():
        assert f"| {name} | {counts['units']} | {counts['items']} |" in card
    assert report["yields"]["judged"]["dropped"] > 0
    assert not list(workdir.glob(".*"))


def test_the_judge_keeps_true_and_better_pairs(finished, world_videos):
    """Every kept pair's chosen answer is true and its rejected one is not."""
    workdir, _ = finished
    truth = {
        item["id"]: item["reference"]
        for line in (workdir / "questions.jsonl").read_text().splitlines()[1:]
        for item in json.loads(line).get("items", ())
    }
    answered = [
        item
        for line in (workdir / "answers.jsonl").read_text().splitlines()[1:]
        for item in json.loads(line).get("items", ())
    ]
    right = np.mean([item["chosen"] == truth[item["id"]] for item in answered])
    assert 0.5 < right < 1
    assert all(p["chosen"] == truth[p["id"]] != p["rejected"] for p in pairs_of(workdir))


@pytest.mark.usefixtures("fast_charts")
def test_inverted_verdicts_keep_the_other_pairs(finished, world_config, tmp_path):
    """A judge that inverts all verdicts keeps exactly the pairs it dropped before."""
    judged = {}
    for slips in (0.0, 1.0):
        workdir = tmp_path / str(slips)
        ignored = shutil.ignore_patterns("judged*", "pairs*", "shards")
        shutil.copytree(finished[0], workdir, ignore=ignored)
        world_config.rules.judge_slips, world_config.balance.localized = slips, 1.0
        curate(world_config, workdir)
        lines = [json.loads(x) for x in (workdir / "judged.jsonl").read_text().splitlines()[1:]]
        judged[slips] = {line["id"]: "items" in line for line in lines}
    assert judged[0.0].keys() == judged[1.0].keys()
    assert all(judged[1.0][name] == (not kept) for name, kept in judged[0.0].items())


def test_excluded_pairs(finished, world_config, tmp_path):
    workdir, report = finished
    page = (workdir / "review.html").read_text()
    pairs = pairs_of(workdir)
    assert page.count("<svg") == 2
    [data] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    for shown, pair in zip(json.loads(data), pairs, strict=True):
        assert (shown["id"], shown["rejected"]) == (pair["id"], pair["rejected"])
        assert (workdir / "review" / shown["picture"]).stat().st_size and not shown["error"]
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("shards"))
    (tmp_path / "run/struck.txt").write_text(f"{pairs[0]['id']}\n\n{pairs[2]['id']}\n")
    assert curate(world_config, tmp_path / "run") == report
    assert (tmp_path / "run/review.html").read_text() == page
    left = [r.id for r in open_shards(tmp_path / "run/shards")]
    assert left == [p["id"] for i, p in enumerate(pairs) if i not in (0, 2)]
    shutil.rmtree(tmp_path / "run/shards")
    (tmp_path / "run/struck.txt").write_text("nobody\n")
    with pytest.raises(InputError, match=r"struck\.txt: no pair has the id 'nobody'"):
        curate(world_config, tmp_path / "run")


def test_a_finished_run_changes_nothing(finished, world_config):
    workdir, report = finished
    before = {path.name: path.read_bytes() for path in workdir.glob("*.jsonl")}
    assert curate(world_config, workdir) == report
    assert {path.name: path.read_bytes() for path in workdir.glob("*.jsonl")} == before


def test_a_store_of_the_videos_gives_the_same_run(finished, world_videos, world_config, tmp_path):
    """The same frames through every view, the same journals, pairs, page and shards."""
    store, workdir = tmp_path / "store", tmp_path / "run"
    prepare(None, world_videos, store, Settings(num_frames=1))
    for name in ("full", "segment", "rest", "irrelevant", "sparse:2", "drop:4", "shuffle:4"):
        one, other = (
            VideoView(folder / "00001.mp4", View(name, 4, (3.0, 9.0), seed=1)).read()
            for folder in (world_videos, store)
        )
        assert np.array_equal(one.frames, other.frames) and len(one.frames)
        assert one.timestamps.tolist() == other.timestamps.tolist() == sorted(one.timestamps)
    gone = VideoView(store / "none.mp4", View("full", 4)).read()
    assert f"no such video in the store {store}" in gone.reason

    world_config.videos.folder = str(store)
    world_config.shards.export = ("trl",)
    with pytest.raises(InputError, match="store: a store, but the lists"):
        curate(world_config, workdir)
    world_config.shards.export = ()
    assert curate(world_config, workdir) == finished[1]
    assert journaled(workdir) == journaled(finished[0])
    one, other = (open_shards(d / "shards").fingerprint for d in (workdir, finished[0]))
    assert one == other
    pictures = [sorted((d / "review").iterdir()) for d in (workdir, finished[0])]
    for mine, its in zip(*pictures, strict=True):
        assert mine.read_bytes() == its.read_bytes()
    assert (workdir / "review.html").read_text() == (finished[0] / "review.html").read_text()


@pytest.mark.usefixtures("fast_charts")
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_parts_gives_the_same_pairs(count, finished, world_config, tmp_path):
    for index in range(count):
        report = curate(world_config, tmp_path / "run", journals.WorkPart(index, count))
        assert ("waiting" in report) == (index < count - 1)
    assert pairs_of(tmp_path / "run") == pairs_of(finished[0])
    assert journaled(tmp_path / "run") == journaled(finished[0])
    one, other = (open_shards(d / "shards").fingerprint for d in (tmp_path / "run", finished[0]))
    assert one == other


def test_two_processes_make_the_same_run(finished, world_config, start_two, tmp_path):
    """One of them asks and prints; `test_rounds` has a model that both run together."""
    file = write_config(tmp_path / "config.py", world_config)
    group = start_two("curate", f"--config={file}", f"--workdir={tmp_path / 'run'}", devices=1)
    out, err = group.communicate(timeout=300)
    assert group.returncode == 0, err
    assert out.count('"pairs": ') == 1
    assert pairs_of(tmp_path / "run") == pairs_of(finished[0])
    assert journaled(tmp_path / "run") == journaled(finished[0])


def test_changed_settings_are_named(finished, world_config):
    world_config.segments.localized = 4
    with pytest.raises(InputError, match=r"segments\.jsonl: .*segments\.localized 3, not 4"):
        curate(world_config, finished[0])
    world_config.segments.localized = 3
    world_config.judge.max_new_tokens = 33
    with pytest.raises(InputError, match=r"judged\.jsonl: .*judge\.max_new_tokens 32, not 33"):
        curate(world_config, finished[0])


class Killed(BaseException):
    """Stands for the end of the process at the place where it is raised."""


@pytest.fixture
def kill_at(monkeypatch):
    """Kill the run inside the n-th line that it writes."""
    left = [0]

    def add(self, lines):
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        left[0] -= 1
        if left[0] == 0:
            self._file.write(data[: random.randrange(len(data) + 1)])
            self._file.flush()
            raise Killed
        self._file.write(data)
        self._file.flush()

    monkeypatch.setattr(journal.Journal, "add", add)

    def arm(lines: int) -> None:
        left[0] = lines

    return arm


@pytest.mark.usefixtures("fast_charts")
def test_kills_at_ten_random_moments(finished, world_config, tmp_path, kill_at):
    random.seed(0)
    total = sum(map(len, journaled(finished[0]).values())) + 6
    kills = 0
    while not (tmp_path / "run/pairs.jsonl").exists():
        kill_at(random.randint(1, max(2, total // 7)) if kills < 10 else 0)
        try:
            curate(world_config, tmp_path / "run")
        except Killed:
            kills += 1
    assert kills >= 5
    assert pairs_of(tmp_path / "run") == pairs_of(finished[0])
    assert journaled(tmp_path / "run") == journaled(finished[0])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 KB, and a function that remounts it."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    try:
        mount("size=32k")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk needs permission: {error}")
    yield disk, mount
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.usefixtures("fast_charts")
def test_a_full_disk(finished, world_config, small_disk):
    """The disk fills up in the middle of the stages, then in the middle of the shards."""
    disk, mount = small_disk
    with pytest.raises(OSError, match="No space left on device"):
        curate(world_config, disk / "run")
    assert (disk / "run/segments.jsonl").exists() and not (disk / "run/pairs.jsonl").exists()
    written = (*finished[0].iterdir(), *(finished[0] / "review").iterdir())
    before_shards = sum(p.stat().st_size for p in written if p.is_file())
    mount(f"remount,size={before_shards + 50_000}")
    with pytest.raises(InputError, match="array_record.* cannot be written: .*No space left"):
        curate(world_config, disk / "run")
    assert not (disk / "run/shards").exists()
    mount("remount,size=64m")
    curate(world_config, disk / "run")
    assert pairs_of(disk / "run") == pairs_of(finished[0])
    assert open_shards(disk / "run/shards").fingerprint == (
        open_shards(finished[0] / "shards").fingerprint
    )


@pytest.mark.usefixtures("fast_charts")
def test_a_disk_full_inside_a_line_loses_nothing(finished, world_config, tmp_path, monkeypatch):
    left = [2000]

    def full(self, lines):
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self._file.write(data[: left[0]])
        self._file.flush()
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        left[0] -= len(data)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", full)
        with pytest.raises(OSError, match="No space left on device"):  # a command prints this line
            curate(world_config, tmp_path / "run")
    curate(world_config, tmp_path / "run")
    assert pairs_of(tmp_path / "run") == pairs_of(finished[0])


@pytest.mark.usefixtures("fast_charts")
def test_a_real_kill(finished, world_config, curate_command, tmp_path):
    workdir = tmp_path / "run"
    child = curate_command(world_config, f"--workdir={workdir}")
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        path = workdir / "questions.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") > 4:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (workdir / "pairs.jsonl").exists()
    curate(world_config, workdir)
    assert pairs_of(workdir) == pairs_of(finished[0])
    assert journaled(workdir) == journaled(finished[0])


@pytest.fixture(scope="module")
def undisturbed():
    """Pairs of an endpoint without faults; filled by the first test that needs them."""
    return {}


def calm_run(endpoint_config, tmp_path, undisturbed):
    if not undisturbed:
        curate(endpoint_config, tmp_path / "calm")
        undisturbed["pairs"] = pairs_of(tmp_path / "calm")
        undisturbed["aside"] = (tmp_path / "calm/set_aside.jsonl").read_text()
    return undisturbed


def test_faults_and_kills_give_the_same_pairs(
    endpoint, endpoint_config, tmp_path, undisturbed, kill_at
):
    kill_at(0)
    calm = calm_run(endpoint_config, tmp_path, undisturbed)
    assert calm["pairs"] and "did not reply in three lines" in calm["aside"]
    random.seed(1)
    endpoint.fault = lambda call, key: random.choice(FAULTS) if random.random() < 0.3 else ""
    kills = 0
    while not (tmp_path / "run/pairs.jsonl").exists():
        kill_at(random.randint(2, 12) if kills < 10 else 0)
        try:
            curate(endpoint_config, tmp_path / "run")
        except Killed:
            kills += 1
    assert kills >= 5
    assert pairs_of(tmp_path / "run") == calm["pairs"]
    assert (tmp_path / "run/set_aside.jsonl").read_text() == calm["aside"]


def test_the_judge_can_answer_the_question_itself(endpoint, endpoint_config, tmp_path):
    """The endpoint replies with the number of frames: 4 of the full view, 2 of the sparse one."""
    endpoint.reply = lambda body: (
        play(body)
        if words(body)[0][:5] in ("These", "Below")
        else (f"It shows {words(body)[1]} frames.")
    )
    endpoint_config.segments.localized, endpoint_config.balance.localized = 0, 0.0
    endpoint_config.answers.comprehensive_rejected = ("sparse:2",)
    endpoint_config.judge.asks = "question"
    endpoint_config.judge.num_frames = 4
    report = curate(endpoint_config, tmp_path / "run")
    yields = report["yields"]["judged"]
    assert yields["units"] == yields["items"] > 0
    endpoint_config.judge.num_frames = 2  # now it agrees with the rejected answer
    with pytest.raises(InputError, match="no pair is left"):
        curate(endpoint_config, tmp_path / "other")
    lines = (tmp_path / "other/judged.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["dropped"] for line in lines} == {"verdict no/yes/no"}


def test_nothing_is_asked_twice_and_concurrency_is_limited(endpoint, endpoint_config, tmp_path):
    endpoint_config.openai.concurrency = 3
    endpoint.delay = 0.005
    curate(endpoint_config, tmp_path / "run")
    assert endpoint.calls == sum(endpoint.asked.values())
    calls = endpoint.calls
    curate(endpoint_config, tmp_path / "run")
    assert endpoint.calls == calls
    assert 1 < endpoint.most_at_once <= 3


def test_the_budget_is_kept(endpoint, endpoint_config, tmp_path):
    endpoint_config.openai.price_in, endpoint_config.openai.price_out = 1000.0, 10000.0
    with pytest.raises(InputError, match=r"--max_cost=1: .* spent"):
        curate(endpoint_config, tmp_path / "run", max_cost=1.0)
    lines = (tmp_path / "run/costs.jsonl").read_text().splitlines()
    spent = [json.loads(line)["cost"] for line in lines]
    assert spent and set(spent) == {0.2}
    # Before the first reply its cost is unknown: `concurrency` requests may be in flight.
    assert sum(spent) <= 1 + 0.2 * endpoint_config.openai.concurrency
    calls = endpoint.calls
    with pytest.raises(InputError, match="--max_cost"):
        curate(endpoint_config, tmp_path / "run", max_cost=1.0)
    assert endpoint.calls <= calls + 1
    curate(endpoint_config, tmp_path / "run", max_cost=1000.0)
    assert pairs_of(tmp_path / "run")


def test_all_parts_share_the_budget(endpoint, endpoint_config, tmp_path):
    """What one part has spent counts for the others, in this run and later ones."""
    endpoint_config.openai.price_in = 1000.0
    ours = journals.WorkPart(2, 3)
    assert any(ours.has(f"{i:05d}") for i in range(5))
    curate(endpoint_config, tmp_path / "run", ours)
    lines = (tmp_path / "run/costs.2-of-3.jsonl").read_text().splitlines()
    spent = sum(json.loads(line)["cost"] for line in lines)
    calls = endpoint.calls
    with pytest.raises(InputError, match=rf"--max_cost={spent:g}: {spent:.4f} spent"):
        curate(endpoint_config, tmp_path / "run", journals.WorkPart(1, 3), max_cost=spent)
    assert spent and endpoint.calls == calls
    # A part that began first reads what another has spent since.
    ledgers = [
        Ledger(journals.WorkPart(i, 2).file(tmp_path, "costs"), read(endpoint_config).openai, 1.0)
        for i in range(2)
    ]
    ledgers[0].reserve()
    ledgers[1].add("x", 1000, 0)
    with pytest.raises(InputError, match=r"1\.0000 spent"):
        ledgers[0].reserve()
    for ledger in ledgers:
        ledger.close()


def test_a_pilot_estimates_the_rest(endpoint, endpoint_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(projection, "VIDEOS", 1)
    endpoint_config.openai.price_in = 1000.0
    curate(endpoint_config, tmp_path / "run")
    (line,) = re.findall(r"^pilot: .*$", capsys.readouterr().err, re.MULTILINE)
    told = re.search(
        r"1 videos in .*; the other 4 will take about \d+ s, (\S+) tokens in, (\S+) out and cost "
        r"about (.*) \(so far (.*)\)",
        line,
    )
    assert told and int(told[1].replace(",", "")) == 10 * int(told[2].replace(",", "")) > 0
    assert float(told[3]) == pytest.approx(4 * float(told[4]))
    # Without new videos there is no pilot; and a pilot changes no pair.
    capsys.readouterr()
    curate(endpoint_config, tmp_path / "run")
    assert "pilot" not in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("CURATION_TEST_KEY", "secret")
    curate(endpoint_config, tmp_path / "plain")
    assert pairs_of(tmp_path / "plain") == pairs_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda e, c: setattr(e, "status", 401), "refused with status 401"),
        (lambda e, c: setattr(e, "status", 503), "requests in a row failed, the last: given up"),
        (lambda e, c: c.openai.update(url=""), "openai.url is empty"),
        (lambda e, c: c.openai.update(url="http://127.0.0.1:9/v1"), "in a row failed.*no reply"),
        (lambda e, c: c.openai.update(key_variable="NO_SUCH_KEY"), "NO_SUCH_KEY holds no key"),
    ],
)
def test_an_unusable_endpoint_ends_the_run(endpoint, endpoint_config, tmp_path, break_, message):
    endpoint_config.openai.patience = 3
    endpoint_config.openai.retries = 1
    break_(endpoint, endpoint_config)
    with pytest.raises(InputError, match=message) as error:
        curate(endpoint_config, tmp_path / "run")
    assert "\n" not in str(error.value)
    # No unit is recorded as failed: the next run asks again.
    assert not (tmp_path / "run/set_aside.jsonl").read_text()


def test_a_request_that_keeps_failing_can_be_retried(endpoint, endpoint_config, tmp_path):
    endpoint_config.openai.retries = 1
    poisoned: list[str] = []

    def fault(call, key):
        if not poisoned:
            poisoned.append(key)
        return "500" if key in poisoned else ""

    endpoint.fault = fault
    curate(endpoint_config, tmp_path / "run")
    aside = [
        json.loads(line) for line in (tmp_path / "run/set_aside.jsonl").read_text().splitlines()
    ]
    failed = [line for line in aside if "given up after 2 tries: status 500" in line["reason"]]
    assert [line["stage"] for line in failed] == ["captions"]
    before = len(pairs_of(tmp_path / "run"))
    endpoint.fault = lambda call, key: ""
    # The list of pairs changes, so the old shards would be stale.
    (tmp_path / "run/shards").rename(tmp_path / "old")
    curate(endpoint_config, tmp_path / "run", retry=True)
    assert "given up" not in (tmp_path / "run/set_aside.jsonl").read_text()
    assert len(pairs_of(tmp_path / "run")) >= before
    assert os.path.exists(tmp_path / "run/shards/manifest.json")
