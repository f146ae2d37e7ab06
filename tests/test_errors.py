"""How commands report what is wrong with their flags."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tpo_jax.errors import LONGEST, printable, tpu_reason

ROOT = Path(__file__).resolve().parents[1]


def test_help_is_on_standard_output_with_exit_code_0() -> None:
    command = [sys.executable, "-m", "tpo_jax.evaluate", "niah", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "evaluate niah --haystack" in shown.stdout and "--needles" in shown.stdout


@pytest.mark.parametrize("override", [{}, {"config.seed": "3"}])
def test_a_config_that_cannot_be_loaded_names_the_flag(tmp_path, override) -> None:
    (tmp_path / "empty.py").touch()
    (tmp_path / "opens.py").write_text("open('nowhere.txt')")
    expected = {
        "nowhere.py": "--config: No such file or directory: 'nowhere.py'",
        str(tmp_path): f"--config: Is a directory: {str(tmp_path)!r}",
        str(tmp_path / "empty.py"): "--config: the file has no function get_config",
        str(tmp_path / "opens.py"): "--config: No such file or directory: 'nowhere.txt'",
    }
    calls = [{"config": path, "workdir": tmp_path / "work", **override} for path in expected]
    for result, reason in zip(commands.call("curate", *calls), expected.values(), strict=True):
        assert (result.code, result.err) == (2, f"error: {reason}\n")
    assert not (tmp_path / "work").exists()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").touch()
    [done] = commands.call("reproduce", {"item": "table4", "workdir": tmp_path / "file"})
    said = f"error: {tmp_path}/file: a file stands where a folder must be made\n"
    assert (done.code, done.out, done.err) == (2, "", said)


def test_a_path_given_twice(tmp_path) -> None:
    """Of two folders one would be left out; other flags may be repeated, and the last counts."""
    twice, several = commands.call(
        "prepare",
        {"videos": ["a", "b"], "output": tmp_path / "out"},
        {
            "videos": tmp_path / "a",
            "output": tmp_path / "out",
            "workers": [0, 1],
            "num_frames": [0, 2],
        },
    )
    assert (twice.code, twice.err) == (2, "error: --videos is given 2 times and takes one path\n")
    assert several.code == 2 and "times" not in several.err


def test_an_error_is_one_line_of_bounded_length() -> None:
    shown = printable("a\nb\x1b[31m" + "c" * 10 * LONGEST)
    assert shown.isprintable() and shown.startswith("a\\nb\\x1b") and len(shown) < LONGEST + 10


def unable(said: str) -> RuntimeError:
    return RuntimeError(
        f"Unable to initialize backend 'tpu': {said} (set JAX_PLATFORMS='' to automatically "
        "choose an available backend)"
    )


# As jax raises them with libtpu 0.0.51 and in reports of its users.
IN_USE = [
    "ABORTED: The TPU is already in use by process with pid 2718466. Not attempting to load "
    "libtpu.so in this process.",
    "ABORTED: The TPU is already in use by another process probably owned by another user. Run "
    '"$ sudo lsof -w /dev/accel0" to figure out which process is using the TPU. If you still get '
    'this message, run "$ sudo rm /tmp/libtpu_lockfile".',
    "UNKNOWN: TPU initialization failed: open(/dev/vfio/1): Device or resource busy: Device or "
    "resource busy; Couldn't open iommu group /dev/vfio/1",
    "FAILED_PRECONDITION: open(/dev/vfio/0): Device or resource busy",
    'INTERNAL: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm '
    '/tmp/libtpu_lockfile".',
]
HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(); sys.stdin.read()"


@pytest.mark.parametrize("said", IN_USE)
def test_who_has_the_tpu(said, tmp_path) -> None:
    lock = tmp_path / "lockfile"
    lock.touch()
    nobody = tpu_reason(unable(said), [str(lock)])
    assert f"sudo fuser -v {lock} names it" in nobody and said in nobody
    assert "JAX_PLATFORMS=''" not in nobody


def test_the_process_that_holds_the_lock_is_named(tmp_path) -> None:
    lock = tmp_path / "lockfile0"
    lock.touch()
    pattern = str(tmp_path / "lockfile[0-9]*")
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with lock.open() as mine, pytest.raises(BlockingIOError):  # it is held indeed
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        reason = tpu_reason(unable(IN_USE[0]), [pattern])
        holder.stdin.close()
    assert f"process {holder.pid} ({sys.executable} -c " in reason
    assert f"has {lock} open; wait for its end or kill it" in reason
    assert f"process {os.getpid()} " not in reason
    # In a process of its own: this one has the required flags of other commands.
    command = "from tpo_jax.errors import run_command\ndef main(): raise RuntimeError({!r})\n"
    command = command.format(str(unable(IN_USE[0]))) + "run_command(main)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: the TPU is in use")


def test_other_errors_of_a_backend_keep_their_traceback() -> None:
    assert not tpu_reason(unable("INTERNAL: Failed to open libtpu.so"))
    assert not tpu_reason(RuntimeError("out of memory"))
