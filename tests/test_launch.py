"""`launch/tpu_run.sh` against a fake cloud, and all scripts against shellcheck."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_cloud import Cloud, wait_for_workers

ROOT = Path(__file__).resolve().parents[1]
COMMAND = '''
"""Stands for a command: writes its arguments to the bucket and obeys them."""
import json, os, pathlib, signal, sys, time

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as train does, after its checkpoint
    bucket, worker = pathlib.Path(os.environ["FAKE_BUCKET"]), pathlib.Path.home().name
    with (bucket / worker).open("a") as file:
        file.write(json.dumps([sys.argv[1:], os.environ.get("NOTE"), os.getcwd()]) + "\\n")
    lives = len((bucket / worker).read_text().splitlines())
    print("log of", worker, file=sys.stderr, flush=True)
    (bucket / f"{worker}.started").touch()
    if "--wait" in sys.argv and lives == 1:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (bucket / "lost").exists():
            time.sleep(0.02)
        if (bucket / "lost").exists():  # of another slice; JAX ends the processes of all
            sys.exit(int((bucket / "lost").read_text()))
    if "--fail" in sys.argv:
        sys.exit(3)
    print("result of", worker)
'''
ENV = 'find_python() { echo python; }\nmake_env() { [ "$1" = tpu ]; }\n'
FLAGS = ["--name=slice", "--zone=us-west4-a", "--poll_seconds=0"]
SLICE = [*FLAGS, "--accelerator=v5litepod-16"]
SLICES = [*SLICE, "--slices=2"]
TRAIN = ["train", "--workdir=gs://runs/a", "--distributed=auto"]
TRAIN_GETS = ["--workdir=/mnt/gcs/runs/a", "--distributed=auto"]
AWKWARD = [
    '--prompt=What\'s "there"?',
    "--config.data.shards=gs://data/shards of mine",
    "$HOME `id` $(id) ; echo no & * ? ~",
    "two\nlines",
    "",
    "--x=--y=gs://no/bucket",
]


class Result(NamedTuple):
    """Exit code, standard output and standard error of a call."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with the real launcher and commands that only record their arguments."""
    root = tmp_path_factory.mktemp("project")
    (root / "launch").mkdir()
    (root / "tpo_jax").mkdir()
    for name in ("tpu_run.sh", "tpu_slices.sh", "tpu_worker.sh"):
        shutil.copy(ROOT / "launch" / name, root / "launch")
    (root / "launch/env.sh").write_text(ENV)
    (root / "tpo_jax/__init__.py").touch()
    (root / "tpo_jax/errors.py").touch()
    for command in ("train", "rounds", "generate"):
        (root / f"tpo_jax/{command}.py").write_text(COMMAND)
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud.install(tmp_path)


def start(project: Path, cloud: Cloud | None, *arguments: str) -> subprocess.Popen:
    path = os.environ["PATH"]
    return subprocess.Popen(
        ["bash", str(project / "launch/tpu_run.sh"), *arguments],
        env=os.environ | {"PATH": f"{cloud.root / 'bin'}:{path}" if cloud else path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(project: Path, cloud: Cloud | None, *arguments: str) -> Result:
    child = start(project, cloud, *arguments)
    out, err = child.communicate(timeout=120)
    return Result(child.returncode, out, err)


def seen(cloud: Cloud, worker: int = 0, slice_: int = 0) -> list[list]:
    """Return `[arguments, $NOTE, working directory]` of every run of a command on a worker."""
    record = cloud.bucket / cloud.home(worker, slice_).name
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_runs_on_all_workers_with_the_arguments_intact(project: Path, cloud: Cloud) -> None:
    result = launch(project, cloud, *SLICE, "--env=NOTE=a 'b'", "--", "generate", *AWKWARD)
    assert result.code == 0, result.err
    assert result.out == "result of worker0\n"
    assert "log of worker0\n" in result.err and "worker1" not in result.err
    expected = [a.replace("=gs://data/", "=/mnt/gcs/data/") for a in AWKWARD[:-1]] + AWKWARD[-1:]
    for worker in (0, 1):
        [[arguments, note, directory]] = seen(cloud, worker)
        assert arguments == expected and note == "a 'b'"
        assert directory == str(cloud.home(worker) / "tpo_jax")
    assert [call[-2:] for call in cloud.calls("gcsfuse")] == 2 * [["data", "/mnt/gcs/data"]]
    [create] = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create and "--spot" not in create
    assert not cloud.calls("gcloud", "compute", "tpus", "queued-resources", "delete")


def test_resumes_after_preemption(project: Path, cloud: Cloud) -> None:
    cloud.save(cloud.load() | {"preemptions": 1})
    job = ["train", "--workdir=gs://runs/a", "--distributed=auto", "--wait"]
    result = launch(project, cloud, *SLICE, "--spot", "--create_flag=--labels=a=b", "--", *job)
    assert result.code == 0, result.err
    assert result.out == "result of worker0\n"
    first, second = seen(cloud)
    assert first == second and first[0][0] == "--workdir=/mnt/gcs/runs/a"
    creations = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert len(creations) == 2 and creations[0] == creations[1]
    assert {"--spot", "--labels=a=b"} < set(creations[0])


def test_several_slices_run_one_command(project: Path, cloud: Cloud) -> None:
    cloud.save(cloud.load() | {"late": 3})
    result = launch(project, cloud, *SLICES, "--delete_when_done", "--", *TRAIN)
    assert (result.code, result.out) == (0, "result of worker0\n"), result.err
    assert "log of worker0\n" in result.err and "log of worker0-1" not in result.err
    assert "waiting for slice: ACTIVE, CREATING" in result.err
    runs = [seen(cloud, worker, slice_) for worker in (0, 1) for slice_ in (0, 1)]
    assert [[arguments for arguments, *_ in run] for run in runs] == 4 * [[TRAIN_GETS]]
    [create] = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert {"--node-count=2", "--node-prefix=slice", "--accelerator-type=v5litepod-16"} < set(
        create
    )
    assert not [word for word in create if word.startswith("--node-id")]
    assert cloud.load()["request"] == []


LOST = {"request": ["ACTIVE"], "nodes": {"1": ["NOT_FOUND"]}}
SUSPENDED = {"request": ["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED"]}
REPAIRED = {"request": ["ACTIVE"], "nodes": {"1": ["CREATING"] * 8 + ["READY"]}}
REPAIRED_AT_ONCE = {"request": ["ACTIVE"], "nodes": {"1": ["READY"]}}


@pytest.mark.parametrize(
    ("code", "left", "requests"),  # 0: the others could save a checkpoint
    [(0, LOST, 2), (1, SUSPENDED, 2), (0, REPAIRED, 1), (1, REPAIRED_AT_ONCE, 1)],
)
def test_all_slices_start_again_when_one_is_lost(
    project: Path, cloud: Cloud, code: int, left: dict, requests: int
) -> None:
    cloud.save(cloud.load() | {"loses_slice": [code, left]})
    result = launch(project, cloud, *SLICES, "--", *TRAIN, "--wait")
    assert (result.code, result.out) == (0, "result of worker0\n"), result.err
    for worker, slice_ in ((0, 0), (1, 0), (0, 1), (1, 1)):
        first, second = seen(cloud, worker, slice_)
        assert first == second
    creations = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert len(creations) == requests


def test_what_a_lost_slice_left_running_ends_first(project: Path, cloud: Cloud) -> None:
    cloud.lend(slices=2)
    watcher = start(project, cloud, *SLICES, "--", *TRAIN, "--wait")
    wait_for_workers(cloud)
    watcher.kill()  # the launcher's machine is gone, too
    watcher.communicate()
    cloud.preempt(1)
    cloud.make_machines(1)
    result = launch(project, cloud, *SLICES, "--", *TRAIN, "--wait")
    assert (result.code, result.out) == (0, "result of worker0\n"), result.err
    assert [len(seen(cloud, 0, slice_)) for slice_ in (0, 1)] == [2, 2]


def test_attaches_to_several_slices_and_stops_them(project: Path, cloud: Cloud) -> None:
    cloud.lend(slices=2)
    watchers = [start(project, cloud, *SLICES, "--", *TRAIN, "--wait")]
    wait_for_workers(cloud)
    watchers.append(start(project, cloud, *SLICES, "--", *TRAIN, "--wait"))
    while "log of worker0" not in watchers[1].stderr.readline():
        pass
    assert launch(project, cloud, *FLAGS, "--stop").code == 0
    for watcher in watchers:
        watcher.communicate(timeout=60)
        assert watcher.returncode == 143
    assert [len(seen(cloud, 1, slice_)) for slice_ in (0, 1)] == [1, 1]
    assert launch(project, cloud, *FLAGS, "--delete").code == 0
    assert cloud.load()["request"] == []


def test_slices_that_never_come(project: Path, cloud: Cloud) -> None:
    cloud.save(cloud.load() | {"expires": True})  # the first slice is made, the second never
    result = launch(project, cloud, *SLICES, "--", *TRAIN)
    assert result.code == 1 and "request failed" in result.err and "--delete" in result.err
    assert "waiting for slice: PROVISIONING, NOT_FOUND" in result.err
    assert not cloud.calls("gcloud", "compute", "tpus", "tpu-vm", "ssh")
    assert len(cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")) == 1


@pytest.mark.parametrize("there", [1, 3])
def test_another_number_of_slices_is_refused(project: Path, cloud: Cloud, there: int) -> None:
    cloud.lend(slices=there)
    result = launch(project, cloud, *SLICES, "--", *TRAIN)
    assert result.code == 2 and f"a request for {there} slices" in result.err
    assert cloud.load()["request"] == ["ACTIVE"]


def test_slices_that_do_not_know_of_each_other_do_not_train(project: Path, cloud: Cloud) -> None:
    cloud.save(cloud.load() | {"untold": True})
    result = launch(project, cloud, *SLICES, "--", *TRAIN)
    assert result.code == 2 and "is not told that it is one of 2 slices" in result.err
    assert not list(cloud.bucket.iterdir())


def test_ssh_may_fail_once(project: Path, cloud: Cloud) -> None:
    cloud.save(cloud.load() | {"ssh_failures": 1})
    result = launch(project, cloud, *SLICE, "--", "generate")
    assert (result.code, result.out) == (0, "result of worker0\n"), result.err
    assert "trying again" in result.err and len(seen(cloud)) == 1


def test_gives_up_on_machines_that_do_not_answer(project: Path, cloud: Cloud) -> None:
    cloud.save(cloud.load() | {"ssh_failures": 1000})
    result = launch(project, cloud, *SLICE, "--", "generate")
    assert result.code == 1 and "gave up" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("no_login", "active account"), ("no_quota", "Quota limit"), ("unlucky", "request failed")],
)
def test_refusals_end_the_run(project: Path, cloud: Cloud, fault: str, message: str) -> None:
    cloud.save(cloud.load() | {fault: True})
    result = launch(project, cloud, *SLICE, "--", "generate")
    assert result.code == 1 and message in result.err and not result.out
    assert result.err.splitlines()[-1].startswith("launch/tpu_run.sh: ")
    creations = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert len(creations) == (0 if fault == "no_login" else 1)


def test_uses_an_existing_slice(project: Path, cloud: Cloud) -> None:
    cloud.lend()
    result = launch(project, cloud, *SLICE, "--", "generate")
    assert (result.code, result.out) == (0, "result of worker0\n"), result.err
    other = launch(project, cloud, *FLAGS, "--accelerator=v5litepod-8", "--", "generate")
    assert other.code == 2 and "already a v5litepod-16" in other.err
    assert not cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")


def test_one_run_at_a_time_and_stop(project: Path, cloud: Cloud) -> None:
    cloud.lend()
    watchers = [start(project, cloud, *SLICE, "--", "generate", "--wait") for _ in range(1)]
    while not (cloud.bucket / "worker1.started").exists():
        time.sleep(0.05)
    other = launch(project, cloud, *SLICE, "--", "generate", "--other")
    assert other.code == 2 and "is busy with" in other.err
    watchers.append(start(project, cloud, *SLICE, "--", "generate", "--wait"))
    same = watchers[1].stderr.readline
    while "log of worker0" not in same():
        pass  # attached: it shows the log of the run that is there
    assert launch(project, cloud, *FLAGS, "--stop").code == 0
    for watcher in watchers:
        watcher.communicate(timeout=60)
        assert watcher.returncode == 143
    assert len(seen(cloud)) == 1


def test_a_worker_names_who_has_the_tpu(tmp_path: Path) -> None:
    held = tmp_path / "lockfile0"
    held.touch()
    command = ["bash", str(ROOT / "launch/tpu_worker.sh"), "users", str(tmp_path / "lockfile[0-9]")]
    with held.open(), held.open():  # once for each process
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        fds = found.stdout.splitlines()
    assert len(fds) == 1 and fds[0].startswith(f"process {os.getpid()} (")
    assert fds[0].endswith(f") has {held} open")
    free = subprocess.run(command, capture_output=True, text=True, check=True)
    assert free.stdout == ""


@pytest.mark.parametrize("failing", [False, True])
def test_exit_code_and_deletion(project: Path, cloud: Cloud, failing: bool) -> None:
    job = ["generate", *["--fail"] * failing]
    result = launch(project, cloud, *SLICE, "--delete_when_done", "--", *job)
    assert result.code == (3 if failing else 0)
    assert cloud.load()["request"] == []
    assert len(seen(cloud)) == 1


def test_delete(project: Path, cloud: Cloud) -> None:
    cloud.lend()
    assert launch(project, cloud, *FLAGS, "--delete").code == 0
    assert cloud.load()["request"] == []
    again = launch(project, cloud, *FLAGS, "--delete")
    assert again.code == 0 and "there is no slice" in again.err


def words(line: str) -> list[str]:
    """Return the words of a line of shell as bash reads them."""
    script = 'eval "set -- $1" && printf "%s\\0" "$@"'
    command = ["bash", "-c", script, "bash", line]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")[:-1]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
def test_dry_run_prints_what_would_run(project: Path, texts: list[str]) -> None:
    arguments = [f"--a={text}" for text in texts if not text.startswith("gs://")]
    result = launch(project, None, *SLICE, "--dry_run", "--", "generate", *arguments)
    assert result.code == 0, result.err
    commands = [words(line) for line in result.out.splitlines()]
    assert [c for c in commands if "create" in c] and all(
        c[0] in ("mkdir", "git", "gcloud") for c in commands
    )
    [start] = [c for c in commands if "start" in c[-1] and c[-1].startswith("--command=")]
    assert words(start[-1].removeprefix("--command="))[5:] == ["generate", *arguments]


def test_dry_run_changes_nothing(project: Path, cloud: Cloud) -> None:
    modes = [[*SLICE, "--delete_when_done", "--", "generate"], [*FLAGS, "--delete"]]
    modes += [[*FLAGS, "--stop"], [*SLICE, "--backend=xpk", "--cluster=c", "--", "generate"]]
    modes += [[*SLICES, "--", *TRAIN], [*FLAGS, "--slices=2", "--stop"]]
    for mode in modes:
        result = launch(project, cloud, "--dry_run", *mode)
        assert result.code == 0 and result.out, result.err
    assert not cloud.calls() and not list(cloud.bucket.iterdir())


def test_dry_run_of_several_slices_names_each(project: Path) -> None:
    result = launch(project, None, *SLICES, "--dry_run", "--", *TRAIN)
    assert result.code == 0, result.err
    starts = [words(line) for line in result.out.splitlines() if " start " in words(line)[-1]]
    assert [command[5] for command in starts] == ["slice-0", "slice-1"]
    workload = ["--backend=xpk", "--cluster=c", "--dry_run", "--", *TRAIN]
    assert "--num-slices=2" in launch(project, None, *SLICES, *workload).out


def test_xpk_runs_the_same_command(project: Path, cloud: Cloud) -> None:
    flags = [*SLICE, "--backend=xpk", "--cluster=c", "--env=NOTE=a 'b'"]
    result = launch(project, cloud, *flags, "--", "generate", *AWKWARD)
    assert result.code == 0, result.err
    [[arguments, note, _]] = seen(cloud)
    assert arguments[0] == AWKWARD[0] and arguments[2:] == AWKWARD[2:] and note == "a 'b'"
    [create] = cloud.calls("xpk")
    assert {"--tpu-type=v5litepod-16", "--storage=data"} < set(create)
    assert not any("\n" in word for word in create)  # xpk pastes the command into YAML
    assert launch(project, cloud, *FLAGS, "--backend=xpk", "--cluster=c", "--delete").code == 0
    assert cloud.calls("xpk", "workload", "delete")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--zone=z", "--accelerator=v6e-8", "--", "train"], "--name"),
        (["--name=Upper", "--zone=z", "--accelerator=v6e-8", "--", "train"], "--name"),
        (["--name=a", "--accelerator=v6e-8", "--", "train"], "--zone"),
        ([*FLAGS, "--", "train"], "--accelerator"),
        ([*FLAGS, "--accelerator=h100-8", "--", "train"], "h100-8"),
        ([*FLAGS, "--accelerator=tpu7x-8", "--", "train"], "xpk"),
        ([*SLICE], "--"),
        ([*SLICE, "--", "dance"], "dance"),
        ([*SLICE, "--", "errors"], "errors"),
        ([*SLICE, "--", "../train"], "../train"),
        ([*SLICE, "train"], "train"),
        ([*SLICE, "--colour=red", "--", "train"], "--colour=red"),
        ([*SLICE, "--revision=nowhere", "--", "train"], "nowhere"),
        ([*SLICE, "--env=NOTE", "--", "train"], "--env"),
        ([*SLICE, "--poll_seconds=soon", "--", "train"], "--poll_seconds"),
        ([*SLICE, "--", "train", "--workdir=gs://runs/a"], "--distributed=auto"),
        ([*SLICE, "--spot", "--", "train", "--distributed=auto", "--workdir=run"], "gs://"),
        ([*SLICE, "--", "rounds", "--workdir=gs://runs/a"], "to the arguments of rounds"),
        ([*SLICE, "--spot", "--", "rounds", "--distributed=auto", "--workdir=a"], "give rounds a"),
        ([*SLICES, "--", "rounds", "--distributed=auto"], "only train spans slices"),
        ([*SLICE, "--", "generate", "--video=gs:///a.mp4"], "gs:///a.mp4"),
        ([*SLICE, "--slices=0", "--", *TRAIN], "--slices=0"),
        ([*SLICE, "--slices=two", "--", *TRAIN], "--slices=two"),
        ([*SLICES, "--", "generate"], "only train"),
        ([*FLAGS, "--accelerator=v6e-8", "--slices=2", "--", "train"], "--distributed=auto"),
        ([*FLAGS, "--accelerator=v3-8", "--slices=2", "--", *TRAIN], "v3-8"),
        ([*SLICE, "--backend=slurm", "--", "train"], "slurm"),
        ([*SLICE, "--backend=xpk", "--", "train"], "--cluster"),
        ([*SLICE, "--cluster=c", "--", "train"], "--cluster"),
        ([*SLICE, "--backend=xpk", "--cluster=c", "--spot", "--", "train"], "--spot"),
        ([*SLICE, "--create_flag=--node-count=2", "--", "train"], "--create_flag=--node-count=2"),
        ([*FLAGS, "--delete", "--stop"], "--stop"),
        ([*FLAGS, "--delete", "--", "train"], "--delete"),
    ],
)
def test_wrong_flags(project: Path, cloud: Cloud, arguments: list[str], named: str) -> None:
    result = launch(project, cloud, *arguments)
    assert (result.code, result.out) == (2, "")
    [line] = result.err.splitlines()
    assert named in line
    assert not cloud.calls()


def test_without_gcloud(project: Path, tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "git", "mktemp", "rm"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    command = ["bash", str(project / "launch/tpu_run.sh"), *SLICE, "--", "generate"]
    result = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 2 and "gcloud is not on the PATH" in result.stderr


def test_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed (the extra 'test' brings it)")
    scripts = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "launch").glob("*.sh"))]
    found = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
