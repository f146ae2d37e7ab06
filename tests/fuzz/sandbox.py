"""Call commands many times, each in a forked child that is watched: how it ends, how long it
takes, what it writes where.

`python -m tests.fuzz.sandbox MODULE …` imports what the commands need and forks a child per line of
standard input, so that a call costs milliseconds, not the start of JAX.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

SECONDS = 10.0  # a call that takes longer hangs
MEMORY_MB = 3000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that change the file system: which arguments are paths, and which the open directory
# that one is relative to.
_CHANGES = {
    "os.truncate": {0: None},
    "os.mkdir": {0: 2},
    "os.rmdir": {0: 1},
    "os.remove": {0: 1},
    "os.chmod": {0: 2},
    "os.chown": {0: 3},
    "os.utime": {0: 3},
    "os.rename": {0: 2, 1: 3},
    "os.link": {1: 3},
    "os.symlink": {1: 2},
}


class Outcome(NamedTuple):
    """What a call came to."""

    code: int  # exit status; minus the signal that ended it
    seconds: float
    memory_mb: int  # resident at most
    out: str
    err: str
    outside: list[str]  # what was written outside `out/` and the temporary folder


class Commands:
    """Commands that can be called often; a context manager."""

    def __init__(self, *modules: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.sandbox", *modules],
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def call(self, module: str, folder: Path, arguments: list[str]) -> Outcome:
        """Call a command. `folder` holds the inputs; `folder/out` is where it may write."""
        for name in ("tmp", "cwd"):
            (folder / name).mkdir()
        before = _snapshot(folder)
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([module, str(folder), arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        code, seconds, memory = json.loads(answer)
        after = _snapshot(folder)
        changed = sorted({*before.items()} ^ {*after.items()})
        return Outcome(
            code,
            seconds,
            memory,
            _text(folder / "stdout"),
            _text(folder / "stderr"),
            [*_text(folder / "outside").splitlines(), *(name for name, _ in changed)],
        )


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file that a call must leave as it is."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if not name.startswith(("out", ".out", "stdout", "stderr")):
            stat = path.lstat()
            found[name] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def _watch(folder: str) -> None:
    """Note every write outside the folders meant for it in `outside`, from now on."""
    note = os.open(f"{folder}/outside", os.O_WRONLY | os.O_CREAT)
    free = [f"{folder}/{name}" for name in ("out", ".out", "tmp")]  # also under a temporary name
    allowed = (*free, "/dev/null", "/dev/shm/", f"/proc/{os.getpid()}/")

    def check(event: str, arguments: tuple) -> None:
        if event == "open" and arguments[2] & _WRITES:
            places: dict[int, int | None] = {0: None}
        else:
            places = _CHANGES.get(event, {})
        for place, base in places.items():
            path = arguments[place]
            if isinstance(path, str | bytes | os.PathLike):
                at = -1 if base is None else arguments[base]
                parent = os.getcwd() if at == -1 else os.readlink(f"/proc/self/fd/{at}")
                where = os.path.realpath(os.path.join(parent, os.fsdecode(path)))
                if not where.startswith(allowed):
                    os.write(note, f"{event} {where!r}\n".encode())

    sys.addaudithook(check)


def _child(module: str, folder: str, arguments: list[str]) -> None:
    """Run the command as `python -m MODULE` would."""
    os.setpgid(0, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.environ["TMPDIR"] = f"{folder}/tmp"
    os.chdir(f"{folder}/cwd")
    sys.argv = [module, *arguments]
    faulthandler.dump_traceback_later(SECONDS - 1)
    _watch(folder)
    code = 70  # of a command that does not end by itself
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(modules: list[str]) -> None:
    from absl import flags

    from tpo_jax.data.records import features
    from tpo_jax.families import FAMILIES

    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for module in modules:
        importlib.import_module(module)
        # The child runs the command's file, which defines its flags again.
        for flag in list(flags.FLAGS.flags_by_module_dict().get(module, [])):
            delattr(flags.FLAGS, flag.name)
    features()  # what TFDS imports late
    if "tpo_jax.convert" in modules:
        for family in FAMILIES.values():
            family.model()  # which imports JAX late
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        module, folder, arguments = json.loads(line)
        start = time.monotonic()
        if not (child := os.fork()):
            _child(module, folder, arguments)
        status, usage = _wait(child, start)
        seconds = time.monotonic() - start
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # whoever it left behind
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps([code, seconds, usage.ru_maxrss // 1024]), file=answers, flush=True)


def _wait(child: int, start: float) -> tuple[int, resource.struct_rusage]:
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() - start > SECONDS:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return os.wait4(child, 0)[1:]
        time.sleep(0.002)


def complaint(outcome: Outcome) -> str:
    """Return what is wrong with how a call ended; empty if it did its work or reported an error."""
    lines = outcome.err.splitlines()
    if outcome.seconds > SECONDS:
        return f"took more than {SECONDS:.0f} s"
    if outcome.memory_mb > MEMORY_MB:
        return f"took {outcome.memory_mb} MB"
    if outcome.outside:
        return f"wrote outside its folder: {outcome.outside[0]}"
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}: {lines[-1] if lines else ''}"
    if "Traceback (most recent call last)" in outcome.err:
        return f"a traceback: {lines[-1]}"
    if outcome.code == 2:
        errors = [line for line in lines if line.startswith("error: ")]
        if len(errors) != 1 or lines[-1] != errors[0] or len(errors[0]) < 12:
            return f"{len(errors)} lines of error, the last line: {lines[-1] if lines else ''}"
        if not errors[0].isprintable() or len(errors[0]) > 2000:
            return f"an error that cannot be shown: {errors[0][:200]!r}"
    return ""


if __name__ == "__main__":
    _serve(sys.argv[1:])
