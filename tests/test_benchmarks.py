"""The arithmetic of `benchmarks/step.py` is that of the compiled programs."""

import dataclasses

import pytest

from benchmarks.step_layouts import measure
from tpo_jax import families
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.models.config import DecoderConfig

MODEL = dataclasses.replace(
    families.preset("tiny_longva"),
    tower=TowerConfig("clip", 32, 8, width=32, layers=2, heads=2, mlp_width=64),
    decoder=DecoderConfig(256, 64, 2, 4, 2, head_dim=16, mlp_width=96, rope_theta=1e4),
)


@pytest.mark.slow
def test_formula_is_what_is_compiled() -> None:
    found, prefix = measure(MODEL, frames=16, text=4, response=5, dtype="float32", repeats=1)
    assert prefix == 16 * 4 + 4
    for name, layout in found.items():
        assert sum(layout.parts.values()) == pytest.approx(layout.flops, rel=0.02), name
    original, ours = found["original"], found["ours"]
    assert original.parts["tower"] == 4 * ours.parts["tower"]
    assert original.bytes > ours.bytes
    # Three programs, one loss.
    assert max(x.loss for x in found.values()) - min(x.loss for x in found.values()) < 1e-5
