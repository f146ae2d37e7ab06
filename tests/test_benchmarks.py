"""Arithmetic and pages of the benchmarks."""

import dataclasses

import pytest

from benchmarks.kept_rows import write_rows
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


def test_rows_that_are_not_computed_keep_what_the_page_says(tmp_path):
    page, starts = tmp_path / "page.md", {"a": "| a |", "b": "| b |", "c": "| c |"}
    write_rows(page, "head\n", starts, ["c", "a"], lambda name: f"| {name} | old |")
    assert page.read_text() == "head\n| a | old |\n| c | old |\n"
    write_rows(page, "new head\n", starts, ["b"], lambda name: f"| {name} | new |")
    assert page.read_text() == "new head\n| a | old |\n| b | new |\n| c | old |\n"
    write_rows(page, "", starts, [], lambda name: f"| {name} | all |")
    assert page.read_text() == "| a | all |\n| b | all |\n| c | all |\n"
