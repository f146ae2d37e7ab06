"""Which experiments fit which TPU slice: the step of `train` compiled for each, without a TPU.

python benchmarks/plan.py --output=docs/results/plan.md [--rows=0,1]

One to several minutes of two CPU cores a row, one after the other. Rows that are not asked for keep
what the file says of them.
"""

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kept_rows import times_minimum, write_rows
from tests.config_files import load
from tpo_jax.plan import model_of
from tpo_jax.planning.plan import Plan, compile_step
from tpo_jax.planning.program import GIB

# What is kept where memory allows; everything else is recomputed.
_KEPT, _MORE = "attention:save", "qkv:save,attention:save,residual:save"


class Row(NamedTuple):
    """An experiment on a slice."""

    preset: str
    frames: int
    topology: str
    mesh: tuple[int, int]  # fsdp, context
    unit: int  # prefix tokens come in multiples of it
    remat: str
    lora: int = 0  # rank; 0: full fine-tuning
    frame_tokens: int = 0  # of a checkpoint converted with `--frame_tokens`; 0: as published


ROWS = (
    Row("llava_onevision_0.5b", 32, "v5e:1x1", (1, 1), 512, _KEPT),  # the tests compile it, too
    Row("llava_onevision_7b", 32, "v5e:4x4", (16, 1), 512, _KEPT),
    Row("llava_video_7b", 32, "v5e:4x4", (16, 1), 512, _KEPT),
    Row("llava_video_7b", 64, "v5e:4x4", (16, 1), 512, _KEPT),
    Row("llava_onevision_72b", 32, "v5p:2x4x4", (32, 1), 512, _KEPT),
    Row("llava_video_72b", 32, "v5p:2x4x4", (32, 1), 512, _KEPT),
    Row("llava_video_7b", 128, "v5e:4x8", (16, 2), 1024, _KEPT),
    Row("llava_video_7b", 512, "v5e:8x8", (4, 16), 8192, _MORE),
    Row("longva_7b", 1024, "v5e:8x8", (2, 32), 16384, _MORE),
    Row("longva_7b", 3000, "v5e:8x8", (1, 64), 32768, _MORE),
    Row("qwen3_vl_2b", 64, "v5e:1x1", (1, 1), 512, _MORE, 16, 384),
    Row("qwen3_vl_4b", 64, "v5e:1x1", (1, 1), 512, "full", 16, 384),
    Row("qwen3_vl_8b", 64, "v5e:2x4", (8, 1), 512, _KEPT, 16, 384),
    Row("qwen3_vl_8b", 64, "v5e:4x4", (16, 1), 512, "full", 0, 384),
    Row("qwen3_vl_8b", 512, "v5e:8x8", (64, 1), 512, _KEPT, 0, 64),
    Row("qwen2_5_vl_7b", 64, "v5e:2x4", (8, 1), 512, _KEPT, 16, 384),
)
HEAD = """# Which experiments fit which slice

Full fine-tuning of decoder and projector (of Qwen3-VL the decoder) or LoRA of the decoder, AdamW with
float32 state, the frozen tower in the step, one pair a step for every group of chips that shares a
row, answers of 128 tokens. The step of `train`, compiled by the TPU compiler on a machine without a
TPU: memory, FLOPs and bytes are the compiled program's; no time was measured. The longest rows go
beyond what the models were trained to read: LongVA was published for 224,000 positions, LLaVA-Video
for 32,768. Qwen models are those of `convert --frame_tokens=384`, at 512 frames `--frame_tokens=64`:
no less than the published budget for all frames leaves a pair of Qwen3-VL (docs/qwen_vl.md).

Every layer is recomputed in the backward pass except for the tensors *kept* (`compute.remat`).
*Times the minimum*: FLOPs over those of a step that computes nothing twice; in brackets the parts of
it that the compiled program computes twice: for layers that are recomputed, and for scores of attention.
The backward pass of attention is two kernels, one for queries and one for keys and values, and both
compute the scores; a single kernel would need partial sums that do not fit. What is left over 1 are
blocks at the diagonal, half of which are masked. In the rows of 512 frames and more of LLaVA-Video and
LongVA most FLOPs are attention.

*Chip-hours* are a lower bound: 10,000 pairs, every step as long as the longest of compute, memory
and links at their peak rates (v5e: 197 TFLOP/s, 819 GB/s, 200 GB/s). The paper reports 8 A100 for
about four hours, 32 GPU-hours, at 10,000 pairs of at most 60 frames. jaxlib 0.10.2 reads the memory
of programs for v5p, not their operations.

Written by `python benchmarks/plan.py --output=docs/results/plan.md`; jax 0.10.2, libtpu 0.0.51.

| model | what | frames | slice | fsdp x context | prefix | kept | peak, GiB | limit | times the minimum | pairs/h | chip-hours |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def config_name(preset: str) -> str:
    """Return the file in `configs/` of a model."""
    for family in ("qwen3_vl", "qwen2_5_vl"):
        if preset.startswith(family):
            return f"{family}_tpo"
    return "longva_tpo" if preset == "longva_7b" else "llava_video_tpo"


def compiled(row: Row, cache: Path | None = None) -> Plan:
    """Return the plan of a row; `cache` is that of `compile_step`."""
    fsdp, context = row.mesh
    config = load(config_name(row.preset)).get_config()
    config.data.num_frames = row.frames
    config.data.prefix_multiple = row.unit
    config.mesh.fsdp, config.mesh.context = fsdp, context
    config.compute.remat = row.remat
    config.lora.rank = row.lora
    config.train.batch_size = fsdp
    config.model.preset, config.model.max_length = row.preset, 2**20
    model = model_of(config)
    if row.frame_tokens:
        model = dataclasses.replace(model, frame_tokens=row.frame_tokens)
    return compile_step(config, model, row.topology, cache=cache)[0]


def start(row: Row) -> str:
    """Return how a row of the table begins, which tells it from the others."""
    what = f"LoRA {row.lora}" if row.lora else "full"
    return f"| {row.preset} | {what} | {row.frames:,} | {row.topology} |"


def line(row: Row, plan: Plan) -> str:
    """Return a row of the table."""
    fsdp, context = row.mesh
    cells = [f"{fsdp} x {context}", f"{plan.prefix:,}"]
    cells += [row.remat.replace(":save", "").replace(",", ", ").replace("full", "nothing")]
    cells += [f"{plan.peak / GIB:.2f}", f"{plan.limit / GIB:.2f}"]
    if plan.fits and not plan.flops:
        cells += ["not readable", "", ""]
    elif plan.fits:
        cells += [times_minimum(plan), f"{plan.pairs_per_hour:,.0f}"]
        cells += [f"{plan.chip_hours:.1f}"]
    else:
        cells += ["does not fit", "", ""]
    return " ".join([start(row), " | ".join(cells), "|"])


def main(_) -> None:
    """Write the table."""
    starts = {f"{n}": start(row) for n, row in enumerate(ROWS)}

    def compute(number: str) -> str:
        row = ROWS[int(number)]
        return line(row, compiled(row))

    write_rows(Path(_OUTPUT.value), HEAD, starts, _WHICH.value, compute)


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "docs/results/plan.md", "where the table goes")
    _WHICH = flags.DEFINE_list("rows", [], "numbers of the rows to compile; empty: all")
    app.run(main)
