"""The train step in its own layout, in the original one, in PyTorch and in Tunix; one run, ratios.

    python benchmarks/step.py [--repeats=5] [--scale=cpu] [--frames=16,32,64,128] [--torch]
        [--tunix=PYTHON] [--output=FILE.md]

Every way is timed in turn on the same device and weights, and the median of the repeats counts.
`--tunix` names the interpreter of an environment of its own that holds `google-tunix`. Prints
Markdown tables.
"""

import dataclasses
import math
import os
import sys
from pathlib import Path

import jax
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import step_formula, step_others
from benchmarks.step_layouts import measure, table
from tpo_jax import families
from tpo_jax.families.llava_qwen.config import LlavaQwenConfig, TowerConfig
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.config import DecoderConfig, ModelConfig
from tpo_jax.planning.chips import CHIPS
from tpo_jax.planning.plan import minimum_flops

REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of every measurement.", lower_bound=1)
SCALE = flags.DEFINE_enum("scale", "cpu", ("cpu", "1.5b"), "Size of the model.")
FRAMES = flags.DEFINE_list("frames", ["16", "32", "64", "128"], "Frames per pair.")
TORCH = flags.DEFINE_bool("torch", False, "Compare with PyTorch, on the CPU.")
TUNIX = flags.DEFINE_string("tunix", "", "Interpreter that has google-tunix.")
PEAK = flags.DEFINE_float("peak_tflops", 0, "Of the device, where this file does not know it.")
OUTPUT = flags.DEFINE_string("output", None, "File for the tables, besides standard output.")

# 7B in proportion: tokens of a frame over tokens of an answer, tower and head over decoder.
SMALL = LlavaQwenConfig(
    TowerConfig("clip", 48, 8, width=128, layers=3, heads=4, mlp_width=512),
    DecoderConfig(2048, 512, 4, 8, 2, head_dim=64, mlp_width=1408, rope_theta=1e6),
    max_length=4096,
)
LARGE = dataclasses.replace(
    families.preset("longva_7b"),
    decoder=DecoderConfig(151936, 1536, 28, 12, 2, head_dim=128, mlp_width=8960, rope_theta=1e6),
)
SIZES = {"cpu": (SMALL, 4, 6, "float32"), "1.5b": (LARGE, 60, 100, "bfloat16")}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12} | {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
}


def layout_tables(model: ModelConfig, text: int, response: int, dtype: str) -> str:
    """Return the first section of the page."""
    rows, parts_rows, spread = [], [], []
    name = jax.devices()[0].device_kind
    peak = 1e12 * PEAK.value or next((p for k, p in PEAKS.items() if k in name), 0)
    for frames in map(int, FRAMES.value):
        found, prefix = measure(model, frames, text, response, dtype, REPEATS.value)
        ours, original = found["ours"], found["original"]
        passes = 5 * 2 * (prefix + response) / (4 * (prefix + 2 * response))
        sizes = {"rows": 1, "prefix": prefix, "questions": 1, "answers": 2, "response": response}
        shape = BatchShape(frames=frames, frame_shape=model.frame_shape, **sizes)
        least = minimum_flops(model, shape)
        speed = least / ours.seconds.wall
        rows.append(
            [
                *(f"{frames}", f"{prefix}", f"{passes:.2f}"),
                *(f"{x.flops / 1e9:,.0f}" for x in found.values()),
                f"{original.flops / ours.flops:.2f}",
                *(f"{x.seconds.wall * 1e3:,.0f}" for x in found.values()),
                f"{original.seconds.wall / ours.seconds.wall:.2f}",
                f"{original.seconds.cpu / ours.seconds.cpu:.2f}",
                *(f"{x.bytes / 2**20:,.0f}" for x in found.values()),
                f"{original.bytes / ours.bytes:.2f}",
                f"{speed / peak:.1%}" if peak else f"{speed / 1e9:.0f} GFLOP/s",
            ]
        )
        losses = [x.loss for x in found.values() if not math.isnan(x.loss)]
        spread.append(max(losses) - min(losses))
        for part in [*ours.parts, "sum", "compiled"]:
            a, b = (
                x.flops if part == "compiled" else x.parts.get(part, sum(x.parts.values()))
                for x in (original, ours)
            )
            cells = [f"{a / 1e9:,.2f}", f"{b / 1e9:,.2f}", f"{a / b:.2f}"]
            parts_rows.append([f"{frames}", part, *cells])
    decoder, tower = model.decoder, model.tower
    head = ["frames", "prefix", "token passes"]
    for unit in ("GFLOP", "ms", "MiB"):
        head += [f"original, {unit}", f"cached reference, {unit}", f"ours, {unit}", "ratio"]
        head += ["ratio, CPU time"] * (unit == "ms")
    head.append("MFU" if peak else "least work over time")
    return f"""## One pair, one row, against the original layout

`--scale={SCALE.value}`: decoder of {decoder.layers} layers, width {decoder.width}, vocabulary
{decoder.vocab_size:,}; tower of {tower.layers} layers, width {tower.width};
{model.tokens_per_frame} tokens a frame, {text} text tokens, answers of {response}. AdamW, {dtype},
tower frozen, decoder layers recomputed in the backward pass (`remat=full`). One pair a step.

- *original*: one row per answer, each with its own copy of the video; float32 logits at all
  positions; the reference model runs in every step.
- *cached reference*: the same without the reference model.
- *ours*: the step of `train`.

{table(head, rows)}
*Token passes*: the ratio expected from the number of tokens that pass through the decoder,
5 · 2(P + R) over 4 · (P + 2R). GFLOP: matrix products of the compiled program (nan on GPUs, where
they are library calls). MiB: arguments, temporaries and outputs of the compiled program. Losses of
the first step differ by {max(spread):.1e} at most.
{MFU}

### Where the FLOPs go

By formula (`benchmarks/step_formula.py`) and in the compiled program, GFLOP:

{table(["frames", "part", "original", "ours", "ratio"], parts_rows)}
{EXPLANATION}
"""


MFU = """*MFU*: the least FLOPs of a step (forward, twice that backward, no recomputation, causal
attention counted half, the head at the answers only, the frozen tower forward only) over seconds
and the device's peak in this dtype. The last column is without the peak where none is known."""
EXPLANATION = """The ratio of the linear layers is that of the token passes, but for one
product: the backward pass does not recompute a layer's last one, and the reference has no backward
pass. Both compute attention over the full square, the masked half included. The head accounts for
the rest: the original applies it to all positions of four rows, ours to the answers' positions,
and again in the backward pass. The tower runs four times in the original and once in ours. The
projector is trained, so its backward pass counts too: two rows against one. Times fall less than
FLOPs with few frames, where AdamW, the same in every layout, takes a large share, and because the
smaller matrix products of prefix and answers run at a lower rate (GFLOP over ms)."""


def seven_billion() -> str:
    """Return the same arithmetic at full size."""
    model, text, response = families.preset("longva_7b"), 60, 100
    rows = []
    for frames in map(int, FRAMES.value):
        prefix = model.visual_tokens(frames) + text
        parts = step_formula.layouts(model, frames, prefix, response, "full")
        original, ours = parts["original"], parts["ours"]
        ratios = [original[part] / ours[part] for part in ours]
        ratios.append(sum(original.values()) / sum(ours.values()))
        petaflops = [f"{sum(x.values()) / 1e15:.2f}" for x in (original, ours)]
        rows.append([f"{frames}", f"{prefix}", *petaflops, *(f"{x:.2f}" for x in ratios)])
    head = ["frames", "prefix", "original, PFLOP", "ours, PFLOP", *ours, "all"]
    return f"""### The same formula at LongVA-7B

Ratios, {text} text tokens and answers of {response}:

{table(head, rows)}"""


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    model, text, response, dtype = SIZES[SCALE.value]
    device = jax.devices()[0]
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    command = (
        f"python benchmarks/step.py --scale={SCALE.value} --repeats={REPEATS.value}"
        + " --torch" * TORCH.value
    )
    command += " --tunix=PYTHON" if TUNIX.value else ""
    head = f"""# The train step, measured

{device.device_kind} ({device.platform}), {os.cpu_count()} CPU cores shared with other programs
(load {load} at the start); jax {jax.__version__}. Median of {REPEATS.value} interleaved repeats,
without compilation. Ratios carry over to other machines better than times.

Written by `{command} --output=docs/results/step.md`.

"""
    sections = [
        lambda: head,
        lambda: layout_tables(model, text, response, dtype),
        seven_billion,
    ]
    if TORCH.value:
        sections.append(lambda: step_others.against_torch(model, text, response, REPEATS.value))
    if TUNIX.value:
        sections.append(
            lambda: step_others.against_tunix(model, response, TUNIX.value, REPEATS.value)
        )
    done = []
    for section in sections:
        done.append(section().strip("\n"))
        print(done[-1] + "\n", flush=True)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text("\n\n".join(done) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
