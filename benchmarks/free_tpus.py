"""What fits the TPUs of Kaggle and Colab: `configs/free_tpus.py` compiled, without a TPU.

python benchmarks/free_tpus.py --output=docs/results/free_tpus.md [--rows=NAME,NAME]

Several minutes of two CPU cores a row, one after the other. Rows that are not asked for keep what
the file says of them.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kept_rows import times_minimum, write_rows
from tests.config_files import load
from tpo_jax.plan import model_of
from tpo_jax.planning.inference import compile_command
from tpo_jax.planning.plan import Plan, compile_step
from tpo_jax.planning.program import GIB

MACHINES = {"v5e:2x4": "Kaggle, v5e-8", "v5e:1x1": "Colab, v5e-1", "v6e:1x1": "Colab, v6e-1"}


class Use(NamedTuple):
    """A command that answers, on a machine."""

    preset: str
    topology: str
    of: str
    frames: int
    rows: int
    weights: str = ""


USES = {
    "kaggle_llava_video_evaluate_128": Use("llava_video_7b", "v5e:2x4", "evaluate", 128, 8),
    "kaggle_llava_video_serve_128": Use("llava_video_7b", "v5e:2x4", "serve", 128, 4),
    "colab_llava_video_evaluate_128": Use("llava_video_7b", "v5e:1x1", "evaluate", 128, 1, "int8"),
    "colab_llava_video_serve_128": Use("llava_video_7b", "v5e:1x1", "serve", 128, 1, "int8"),
    "colab_onevision_serve_128": Use("llava_onevision_0.5b", "v5e:1x1", "serve", 128, 4),
    "colab_v6e_llava_video_evaluate_128": Use("llava_video_7b", "v6e:1x1", "evaluate", 128, 1),
    "colab_v6e_llava_video_serve_128": Use("llava_video_7b", "v6e:1x1", "serve", 128, 1),
}
HEAD = """# What fits the TPUs of Kaggle and Colab

The recipes of `configs/free_tpus.py` and the commands that answer, compiled by the TPU compiler on a
machine without a TPU. Memory and FLOPs are the compiled program's; no time was measured, and
nothing has run on such a machine yet. Kaggle's notebooks have a TPU v5e-8 (eight chips of 16 GB, one
host), Colab's free ones a v5e-1, paid ones a v6e-1 (32 GB); the compiler leaves 15.75 and 31.24 GiB
of them to a program.

Weights are bfloat16 as published, in the rows with `int8` the decoder's layers are quantized.
A training step has 8 pairs with answers of 128 tokens, of which a single chip computes one or more
at a time. *Times the minimum*: FLOPs over those of a step that computes nothing twice; in brackets the parts of
it that the compiled program computes twice: for layers that are recomputed in the backward pass, and for
scores of attention, which its two kernels need. *Hours* are a lower bound for 10,000 pairs or questions
on the machine, every unit of a chip at its peak rate. jaxlib 0.10.2 reads the memory of some programs
for v6e, not their operations.

What a full fine-tuning or LoRA of a 7B model computes twice is the MLP: to keep its two inner products
in all layers takes 13.6 GB for a pair of 32 frames of LLaVA-Video and 26 GB for one of 64 (28 layers,
18,944 wide), more than a chip has left. The backward pass of attention is two kernels, and both compute
the scores. What is left over 1 are blocks at the diagonal, half of which are masked.

<!-- needs: weights, tpu, libtpu -->
```bash
python -m tpo_jax.plan --config=configs/free_tpus.py:kaggle_llava_video_full_32 \\
  --config.model.preset=llava_video_7b --topology=v5e:2x4
python -m tpo_jax.train --config=configs/free_tpus.py:kaggle_llava_video_full_32 --workdir=DIR \\
  --config.model.checkpoint=LLaVA-Video-7B-Qwen2 --config.data.shards=SHARDS
```

Written by `python benchmarks/free_tpus.py`; jax 0.10.2, libtpu 0.0.51.

| recipe | machine | model | what | frames | peak, GiB | limit | times the minimum | an hour | hours |
|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def compiled(name: str) -> tuple[Plan, list[str]]:
    """Return the plan of a row, and its first cells."""
    file = load("free_tpus")
    if name in file.RECIPES:
        (preset, topology, _, _), config = file.RECIPES[name], file.get_config(name)
        config.model.preset, weights = preset, config.model.weights
        plan = compile_step(config, model_of(config), topology)[0]
        what = f"LoRA {config.lora.rank}" if config.lora.rank else "full fine-tuning"
    else:
        preset, topology, of, frames, rows, weights = USES[name]
        config = file.get_config()
        config.data.num_frames, config.model.preset = frames, preset
        config.model.weights = weights
        plan = compile_command(config, model_of(config), topology, of, rows)
        what = f"`{of}`, {rows} at a time"
    what += f", {weights} base" * bool(weights)
    cells = [f"`{name}`", MACHINES[topology], preset, what, str(plan.frames)]
    return plan, cells


def line(plan: Plan, cells: list[str]) -> str:
    """Return a row of the table."""
    cells = [*cells, f"{plan.peak / GIB:.2f}", f"{plan.limit / GIB:.2f}"]
    if plan.fits and not plan.flops:
        cells += ["not readable", "", ""]
    elif plan.fits:
        once = f"{plan.flops / plan.minimum_flops:.2f}"
        cells += [times_minimum(plan) if plan.of == "train" else once]
        cells += [f"{plan.pairs_per_hour:,.0f}", f"{plan.chip_hours / plan.chips:.1f}"]
    else:
        cells += [f"does not fit: {(plan.peak - plan.limit) / GIB:.2f} GiB too much", "", ""]
    return "| " + " | ".join(cells) + " |"


def main(_) -> None:
    """Write the table."""
    starts = {name: f"| `{name}` |" for name in [*load("free_tpus").RECIPES, *USES]}
    write_rows(Path(_OUTPUT.value), HEAD, starts, _WHICH.value, lambda name: line(*compiled(name)))


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "docs/results/free_tpus.md", "where the table goes")
    _WHICH = flags.DEFINE_list("rows", [], "names of the rows to compile; empty: all")
    app.run(main)
