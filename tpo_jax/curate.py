"""Make temporal preference pairs from a folder of videos.

    python -m tpo_jax.curate --config=FILE --workdir=DIR [--config.a.b=…]

Stages: videos, segments, captions, questions, answers, judged, then `pairs.jsonl`, `shards/` and
the data card `README.md`. `docs/curation.md` explains the fields and the files. Run the command
again to resume an interrupted run. `set_aside.jsonl` lists what failed, with reasons.
"""

import json
import sys

import jax
from absl import flags
from ml_collections import config_flags

from tpo_jax.curation.journals import parse_part
from tpo_jax.curation.run import curate
from tpo_jax.errors import run_command
from tpo_jax.io.paths import define_path
from tpo_jax.parallel import distributed

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = define_path("workdir", None, "Directory of all outputs.", required=True)
_PART = flags.DEFINE_string(
    "part", "", "i/n: process the i-th of n shares of the videos; all use one --workdir."
)
_MAX_COST = flags.DEFINE_float(
    "max_cost",
    0.0,
    "Stop asking when all parts and runs in --workdir have cost this much; 0: no limit.",
    lower_bound=0,
)
_RETRY = flags.DEFINE_bool("retry", False, "Process failed units again.")
_DISTRIBUTED = flags.DEFINE_string("distributed", "", distributed.FLAG_HELP)
flags.mark_flag_as_required("config")


def main() -> None:
    """Run the command and print the report."""
    distributed.start(_DISTRIBUTED.value)
    part = parse_part(_PART.value)
    workdir = _WORKDIR.value
    report = curate(_CONFIG.value, workdir, part, _MAX_COST.value, _RETRY.value)
    if jax.process_index():
        return
    print(json.dumps(report, indent=2))
    if report.get("waiting"):
        print(
            f"{report['waiting']} units wait for other parts; the last part writes the pairs",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_command(main)
