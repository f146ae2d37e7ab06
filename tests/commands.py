"""Several calls of one command in one child process: starting Python and JAX takes the time.

The child is a fork of a process that imported what commands import, which all tests share that have
the same environment variables.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_CHILD = """
import contextlib, importlib, io, json, sys
from absl import flags
from tpo_jax.errors import run_command

module = importlib.import_module(sys.argv[1])
results = []
for arguments in json.loads(sys.argv[2]):
    for command in getattr(module, "COMMANDS", {}).values():
        command.values.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    sys.argv = [sys.argv[0], *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(getattr(module, "COMMANDS", None) or module.main)
            code = 0
        except SystemExit as end:
            code = end.code or 0
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""

# The flags of `train` are defined where it is run as a program.
_PROGRAM = """
import contextlib, importlib, io, json, runpy, sys
from absl import flags

module, results = sys.argv[1], []
importlib.import_module(module)  # and with it the flags of libraries
del sys.modules[module]
own = set(flags.FLAGS)
for arguments in json.loads(sys.argv[2]):
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - own:
        delattr(flags.FLAGS, name)
    sys.argv = [module, *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""

# Forks before JAX has a backend, and so before there are threads that hold locks.
_IMPORTED = """
import json, os, sys

import tpo_jax.train
for line in sys.stdin:
    if not os.fork():
        break
    print(os.wait()[1], flush=True)
else:
    sys.exit()
script, name, arguments, *files = json.loads(line)
for number, file in enumerate(files):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
sys.argv[1:] = [f"tpo_jax.{name}", arguments]
exec(script)
"""
_imported: dict[tuple, subprocess.Popen] = {}  # by environment variables


class Result(NamedTuple):
    """Exit code, standard output and standard error of a call."""

    code: int
    out: str
    err: str


def call(name: str, *calls: dict, command: str = "") -> list[Result]:
    """Run `python -m tpo_jax.<name> [command]` per mapping of flags; a list repeats a flag."""
    return call_commands(name, *((command, flags) for flags in calls))


def call_commands(name: str, *calls: tuple[str, dict]) -> list[Result]:
    """Run `python -m tpo_jax.<name> <command>` per command, which may be empty, and flags."""
    arguments = [
        [
            *([command] if command else []),
            *(f"--{k}={v}" for k, values in flags.items() for v in _listed(values)),
        ]
        for command, flags in calls
    ]
    return _results(_CHILD, name, arguments, {})


def call_program(
    name: str, *calls: list[str], variables: dict[str, str] | None = None
) -> list[Result]:
    """Run `python -m tpo_jax.<name>` per list of arguments, with more environment variables."""
    return _results(_PROGRAM, name, calls, variables or {})


def _results(script: str, name: str, arguments, variables: dict[str, str]) -> list[Result]:
    environment = _environment() | variables
    key = tuple(sorted(environment.items()))
    if key not in _imported:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", _IMPORTED]
        _imported[key] = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
    process = _imported[key]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = (script, name, json.dumps(arguments), os.devnull, str(out), str(err))
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n", err.read_text() if err.exists() else name
        return [Result(*values) for values in json.loads(out.read_text().splitlines()[-1])]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def stop_imported(all_of_them: bool = True) -> None:
    """End the processes that imported commands, but the one with today's environment if not all."""
    kept = () if all_of_them else tuple(sorted(_environment().items()))
    for key in [key for key in _imported if key != kept]:
        _imported.pop(key).communicate()


def _listed(values) -> list:
    return values if isinstance(values, list) else [values]
