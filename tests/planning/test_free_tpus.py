"""The recipes for the TPUs of Kaggle and Colab run, and fit by formula."""

import sys
from pathlib import Path

import jax
import pytest

from tests.config_files import load
from tpo_jax import families
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.parallel.sharding import check_rows
from tpo_jax.planning.chips import CHIPS, chips_of
from tpo_jax.planning.estimate import least_memory
from tpo_jax.planning.plan import abstract_state, batch_shape
from tpo_jax.planning.program import GIB
from tpo_jax.training.experiment import read

ROOT = Path(__file__).resolve().parents[2]
FILE = load("free_tpus")


def rows():
    """The rows of docs/results/free_tpus.md by name."""
    text = (ROOT / "docs/results/free_tpus.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line[:2] == "| "]
    head, *found = ([cell.strip(" `") for cell in line] for line in lines)
    return {row[0]: dict(zip(head, row, strict=True)) for row in found}


@pytest.mark.parametrize("name", FILE.RECIPES)
def test_a_recipe_fits_by_formula(name):
    (preset, topology, frames, _), config = FILE.RECIPES[name], FILE.get_config(name)
    config.model.preset = preset
    wanted, model = read(config), families.preset(preset)
    devices = jax.devices()[: chips_of(topology)]  # for the layout alone
    mesh = make_mesh({**dict.fromkeys(AXES, 1), "fsdp": -1}, devices)
    shape, state = batch_shape(wanted, model), abstract_state(wanted, model, mesh)[1]
    check_rows(shape.rows, mesh, wanted.compute.micro_batches)
    limit = CHIPS[topology.split(":")[0]].hbm
    # Working memory is beyond the formula: at least as much as the smallest model takes.
    peak = least_memory(wanted, model, shape, state, mesh) / GIB
    assert peak + 1 < limit
    assert str(config.data.num_frames) == str(frames) == name.split("_")[-1]
    if row := rows().get(name):
        assert (row["model"], row["frames"]) == (preset, str(frames))
        assert peak < float(row["peak, GiB"]) <= float(row["limit"]) == round(limit, 2)


def test_the_page_has_rows_of_what_is_there():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import free_tpus as benchmark

    assert {*rows()} <= {*FILE.RECIPES, *benchmark.USES}


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="unknown variant 'other'; there are kaggle"):
        FILE.get_config("other")
