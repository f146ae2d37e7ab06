"""Several calls of one command in one child process: starting Python and JAX takes the time."""

import json
import subprocess
import sys
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


class Result(NamedTuple):
    """Exit code, standard output and standard error of a call."""

    code: int
    out: str
    err: str


def call(name: str, *calls: dict, command: str = "") -> list[Result]:
    """Run `python -m tpo_jax.<name> [command]` per mapping of flags; a list repeats a flag."""
    first = [command] if command else []
    arguments = [
        [*first, *(f"--{k}={v}" for k, values in flags.items() for v in _listed(values))]
        for flags in calls
    ]
    child_command = [sys.executable, "-c", _CHILD, f"tpo_jax.{name}", json.dumps(arguments)]
    child = subprocess.run(child_command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return [Result(*values) for values in json.loads(child.stdout.splitlines()[-1])]


def _listed(values) -> list:
    return values if isinstance(values, list) else [values]
