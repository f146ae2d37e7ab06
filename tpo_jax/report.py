"""A page about a run: `python -m tpo_jax.report --workdir=DIR` writes `DIR/report.html`.

Curves, warnings with their evidence, and where the time went; also while the run goes on.
"""

from pathlib import Path

from tpo_jax.errors import run_command
from tpo_jax.io.paths import define_path
from tpo_jax.training import run_page

_WORKDIR = define_path("workdir", None, "that of `train`", required=True)


def main() -> None:
    """The command."""
    print(run_page.write(Path(_WORKDIR.value)))


if __name__ == "__main__":
    run_command(main)
