"""Memory and time of `convert`, there and back, on a synthetic checkpoint in LongVA layout.

    python benchmarks/convert.py [--layers=12] [--width=2048] [--output=FILE.md]

Every conversion is a process of its own; its peak is what the kernel counted, files read through
memory maps included. `imports` is the peak of the command when it only prints its help. Prints a
Markdown table.
"""

import dataclasses
import filecmp
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import flatten, weights
from tpo_jax.io.files import write_json
from tpo_jax.models.config import DecoderConfig, ModelConfig

LAYERS = flags.DEFINE_integer("layers", 12, "Decoder layers.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 2048, "Decoder width, a multiple of 128.", lower_bound=128)
SHARDS = flags.DEFINE_integer("shards", 5, "Files of the checkpoint.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "File for the table, besides standard output.")
MIB = 2**20


def write_checkpoint(directory: Path, config: ModelConfig, files: int) -> None:
    """Write random bfloat16 tensors in files of about one size, in the order of the table."""
    directory.mkdir()
    draws = np.random.default_rng(0).standard_normal(2**22, np.float32).astype(jnp.bfloat16)
    shapes = weights(config).tensors
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    parts: list[dict] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size > total / files:
            save_file(parts[-1], directory / f"model-{len(parts)}.safetensors", {"format": "pt"})
            parts[-1].clear()
            parts.append({})
            size = 0
        parts[-1][name] = np.resize(np.roll(draws, len(name)), shape)
        size += int(np.prod(shape))
    save_file(parts[-1], directory / f"model-{len(parts)}.safetensors", {"format": "pt"})
    layout = families.of(config).layouts["original"]
    for file, values in layout.new_config(config, "bfloat16").items():
        write_json(directory / file, values)


def measure(*arguments: str) -> tuple[float, float]:
    """Return seconds and peak memory in MiB of the command, in a process of its own."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "tpo_jax.convert", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status and arguments[0] != "--help":
        raise RuntimeError(f"{arguments} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / MIB


def main(_) -> None:
    """Convert there and back and print the table."""
    decoder = DecoderConfig(
        vocab_size=32768,
        width=WIDTH.value,
        layers=LAYERS.value,
        heads=WIDTH.value // 128,
        kv_heads=max(WIDTH.value // 1024, 1),
        head_dim=128,
        mlp_width=4 * WIDTH.value,
        rope_theta=1e6,
    )
    config = dataclasses.replace(families.preset("longva_7b"), decoder=decoder)
    with tempfile.TemporaryDirectory() as folder:
        source, native, back = (Path(folder) / name for name in ("source", "native", "back"))
        # A process of its own: what a parent held counts as the peak of its children.
        arguments = (source, config, SHARDS.value)
        writer = multiprocessing.get_context("spawn").Process(
            target=write_checkpoint, args=arguments
        )
        writer.start()
        writer.join()
        files = sorted(source.glob("*.safetensors"))
        sizes = [file.stat().st_size / MIB for file in files]
        _, base = measure("--help")
        there, up = measure(f"--input={source}", f"--output={native}")
        home, down = measure(f"--input={native}", f"--output={back}")
        same = all(filecmp.cmp(file, back / file.name, shallow=False) for file in files)
    largest = (
        2
        * max(int(np.prod(x.shape)) for x in flatten(families.abstract_params(config)).values())
        / MIB
    )
    rows = [
        ("checkpoint", "", f"{sum(sizes):.0f}"),
        (f"largest of its {len(files)} files", "", f"{max(sizes):.0f}"),
        ("largest parameter, all layers stacked", "", f"{largest:.0f}"),
        ("imports", "", f"{base:.0f}"),
        ("Hugging Face to native", f"{there:.0f}", f"{up:.0f}"),
        ("native to Hugging Face", f"{home:.0f}", f"{down:.0f}"),
    ]
    lines = ["| bfloat16 | s | MiB |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"Files {'are' if same else 'ARE NOT'} identical after both.", ""]
    print("\n".join(lines))
    if OUTPUT.value:
        Path(OUTPUT.value).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
