"""Commands as `python -m` runs them, in one process: starting Python and JAX takes the time.

A process serves all tests that have the same environment variables.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# What commands write goes into their results; what a library prints, to standard error.
_PROCESS = """
import contextlib, gc, io, json, os, runpy, sys, traceback
from absl import flags
import jax

import tpo_jax.train
from tests.memory import free_programs, resident
from tpo_jax.errors import note

requests, results = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
settings = dict(jax.config.values)
gc.collect()
gc.freeze()  # what is imported stays


def late(what):  # of a thread that a command before has left, while another one runs
    traceback.print_exception(what.exc_value, file=sys.__stderr__)


sys.unraisablehook = late


def run(module, arguments):
    for name in (module, "config_config", "curate_config"):  # the last two are of config files
        sys.modules.pop(name, None)
    for name in list(flags.FLAGS):  # those of the command before, and the fields of its config
        if "." in name or flags.FLAGS.find_module_defining_flag(name).startswith("tpo_jax."):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    note.cache_clear()
    sys.argv = [module, *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            traceback.print_exc()
            code = 1
    for name, value in settings.items():
        if jax.config.values[name] != value:
            jax.config.update(name, value)
    return code, out.getvalue(), err.getvalue()


for line in requests:
    module, calls = json.loads(line)
    print(json.dumps([run(module, arguments) for arguments in calls]), file=results, flush=True)
    if resident() > 2e9:
        free_programs()
"""
_processes: dict[tuple, subprocess.Popen] = {}  # by environment variables


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
    return call_program(name, *arguments)


def call_program(
    name: str, *calls: list[str], variables: dict[str, str] | None = None
) -> list[Result]:
    """Run `python -m tpo_jax.<name>` per list of arguments, with more environment variables."""
    return call_module(f"tpo_jax.{name}", *calls, variables=variables)


def call_module(
    module: str, *calls: list[str], variables: dict[str, str] | None = None
) -> list[Result]:
    """Run `python -m <module>` per list of arguments, with more environment variables."""
    environment = _environment() | (variables or {})
    key = tuple(sorted(environment.items()))
    if key not in _processes:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", _PROCESS]
        _processes[key] = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
    process = _processes[key]
    process.stdin.write(json.dumps([module, calls]) + "\n")
    process.stdin.flush()
    results = process.stdout.readline()
    if not results:
        _processes.pop(key).communicate()
    assert results, f"{module} ended with exit code {process.returncode}"
    return [Result(*values) for values in json.loads(results)]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def stop_commands(all_of_them: bool = True) -> None:
    """End the processes that run commands, but the one with today's environment if not all."""
    kept = () if all_of_them else tuple(sorted(_environment().items()))
    for key in [key for key in _processes if key != kept]:
        _processes.pop(key).communicate()


def _listed(values) -> list:
    return values if isinstance(values, list) else [values]
