"""Write the run report: `python -m tpo_jax.report --workdir=DIR` writes `DIR/report.html`.

It shows curves, warnings with their evidence, and where the time went, also of a run in progress.
"""

from pathlib import Path

from tpo_jax.errors import run_command
from tpo_jax.io.paths import define_path
from tpo_jax.training import run_page

_WORKDIR = define_path("workdir", None, "that of `train`", required=True)


def main() -> None:
    """Run the command."""
    print(run_page.write(Path(_WORKDIR.value)))


if __name__ == "__main__":
    run_command(main)
