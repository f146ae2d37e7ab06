"""Figures of programs that take the TPU compiler a minute.

python -m tests.planning.figures

compiles them all and keeps their figures in `figures/`. Tests find these by the program, its
devices, the compiler and the code that reads them: only where one has changed do they compile.
"""

import shutil
from pathlib import Path

from benchmarks import plan as benchmark
from tests.planning.slice import SLICE, experiment
from tpo_jax.planning.plan import Plan, compile_step

FOLDER = Path(__file__).with_suffix("")


def published_row(cache: Path) -> Plan:
    """The smallest published model, whole; the first row of docs/results/plan.md."""
    return benchmark.compiled(benchmark.ROWS[0], cache)


def chips_that_are_two_devices(cache: Path) -> Plan:
    """A small step for four of them."""
    return compile_step(experiment(), SLICE, "tpu7x:2x2x1", cache=cache)[0]


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for compiled in (published_row, chips_that_are_two_devices):
        compiled(FOLDER)
