"""Peak memory of loading, in processes of their own: the weights and two of the largest parameter.
Conversions are measured in `tests/test_convert.py`.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import weights
from tpo_jax.checkpoints.models import open_model, save_model
from tpo_jax.checkpoints.safetensors_files import Entry, SafetensorsWriter
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.quantized import quantize_params

ROOT = Path(__file__).resolve().parents[2]
TINY = families.preset("tiny_longva")
# Three parameters of 100 MB, 340 MB in all.
DECODER = DecoderConfig(4096, 512, 6, 4, 2, 128, 16384, 1e4)
CONFIG = dataclasses.replace(TINY, decoder=DECODER)
# What the allocator, thread stacks and pages of mapped files take beside arrays.
SLACK = 60e6

PROGRAM = """
import os, pathlib, sys
from tpo_jax.checkpoints.models import load_model

def resident(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))

def measure(tiny, source, weights=""):
    kept = load_model(tiny, dtype=None, weights=weights)  # imports, programs, threads
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    kept = load_model(source, dtype=None, weights=weights)
    print(resident("VmHWM") - before, flush=True)

for arguments in sys.argv[1:]:
    if not os.fork():
        measure(*arguments.split())
        os._exit(0)
    assert not os.wait()[1]
"""


def write(directory, config):
    """A bfloat16 checkpoint, tensor by tensor."""
    directory.mkdir()
    entries = {name: Entry("BF16", shape, 2) for name, shape in weights(config).tensors.items()}
    writer = SafetensorsWriter(directory / "model.safetensors", entries, {"format": "pt"})
    draws = np.random.default_rng(0).standard_normal(2**20, np.float32).astype(jnp.bfloat16)
    for name, entry in entries.items():
        writer.write(name, np.resize(draws, entry.shape))
    made = families.of(config).layouts["original"].new_config(config, "bfloat16")
    for file, values in made.items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(json.dumps(values))


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    for name, config in (("tiny", TINY), ("large", CONFIG)):
        write(folder / name, config)
        opened = open_model(folder / name)
        save_model(folder / f"{name}-native", opened.config, opened.params, folder / name)
    return folder


@pytest.fixture(scope="module")
def peaks(directories):
    """Bytes at most while the large model is loaded: from either layout, and quantized."""
    here = directories
    measured = {
        "hugging face": f"{here / 'tiny'} {here / 'large'}",
        "native": f"{here / 'tiny-native'} {here / 'large-native'}",
        "int8": f"{here / 'tiny'} {here / 'large'} int8",
    }
    command = [sys.executable, "-c", PROGRAM, *measured.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not reset the peak of a process")
    assert done.returncode == 0, done.stderr
    return dict(zip(measured, map(int, done.stdout.split()), strict=True))


def sizes():
    return [2 * int(np.prod(x.shape)) for x in jax.tree.leaves(families.abstract_params(CONFIG))]


@pytest.mark.parametrize("layout", ["hugging face", "native"])
def test_loading_streams(peaks, layout):
    assert sum(sizes()) <= peaks[layout] <= sum(sizes()) + 2 * max(sizes()) + SLACK


def test_a_quantized_model_is_never_whole_beside_its_own_weights(peaks):
    small = jax.eval_shape(lambda p: quantize_params(p, "int8"), families.abstract_params(CONFIG))
    leaves = jax.tree.leaves(small)
    total = sum(int(np.prod(x.shape)) * (1 if x.dtype == jnp.int8 else 2) for x in leaves)
    assert total <= peaks["int8"] <= total + 2 * max(sizes()) + SLACK
    assert total + 2 * max(sizes()) + SLACK < total + sum(sizes())
