"""The whole method on the synthetic world: `python -m tpo_jax.quickstart [--workdir=DIR]`.

Standard output is the report in Markdown; `report.html` beside it has the plots. A second start
resumes where the first one stopped.
"""

import os
from pathlib import Path

from absl import flags

from tpo_jax.errors import run_command
from tpo_jax.io.paths import define_path

_WORKDIR = define_path("workdir", "quickstart", "Directory of all results.")
_SEED = flags.DEFINE_integer("seed", 11, "seed of the world, the weights and the order of the data")
_TINY = ["tiny_longva", "tiny_llava_video", "tiny_qwen3_vl", "tiny_qwen2_5_vl"]
_MODEL = flags.DEFINE_enum("model", _TINY[0], _TINY, "preset of the model")
_SCALE = flags.DEFINE_enum(
    "scale", "full", ["full", "smoke"], "smoke only shows that every stage runs"
)


def main() -> None:
    """Run the command."""
    # Imported here: the processes that render videos start from this module and need no JAX.
    import jax

    from tpo_jax.study import quickstart
    from tpo_jax.study.stages import SCALES
    from tpo_jax.train import train

    # Two small devices use two cores better than one device does; more have too little work.
    jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
    workdir, scale = Path(_WORKDIR.value).absolute(), SCALES[_SCALE.value]
    page = quickstart.run(workdir, scale, _SEED.value, train, _MODEL.value)
    print(f"\nReport with plots: {page}")


if __name__ == "__main__":
    run_command(main)
