"""The notebooks run top to bottom, at the smallest size; committed ones hold no outputs."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tpo_jax.study.machines import MACHINES, settings_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEFT = {
    "01_quickstart": ["quickstart/tpo/report.html"],
    "02_finetune_your_pairs": [
        *("small_model/config.json", "finetuned/shards/manifest.json"),
        *("finetuned/run/report.html", "finetuned/run/adapters/adapter_model.safetensors"),
        *("finetuned/after.jsonl", "finetuned/huggingface/config.json"),
        *("kept/adapters/adapter_config.json", "kept/report.html"),
    ],
    "03_curate_and_evaluate": [
        *("curated/review.html", "curated/shards/manifest.json", "base.jsonl", "tpo.jsonl"),
        "evaluated/results.json",
    ],
}
COLAB = "colab.research.google.com/github"
MACHINE = {"02_finetune_your_pairs": "colab_v5e", "04_finetune_on_kaggle": "kaggle_v5e"}
SETTINGS = 3  # cells of the notebook for Kaggle up to the one that chooses the settings


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == [*LEFT, "04_finetune_on_kaggle"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_committed(path):
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None
            assert len(cell["source"]) <= 30
    assert set(json.loads(path.read_text(encoding="utf-8"))["metadata"]) == {
        *("kernelspec", "language_info")
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_its_badge_and_mentions_tpus(path):
    texts = "".join("".join(cell["source"]) for cell in cells(path))
    place = "kaggle.com/kernels/welcome?src=https://github.com" if "kaggle" in path.stem else COLAB
    target = f"{place}/OWNER/tpo_jax/blob/main/notebooks/{path.name}"
    assert target in texts and target in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "**On a TPU**" in texts
    for link in re.findall(r"\]\(([^:)]+)\)", texts):
        assert (path.parent / link).exists(), link


def test_kaggle_runs_the_cells_of_colab():
    """After the ones that get the project and mount what lasts."""
    colab, kaggle = (
        [cell["source"] for cell in cells(ROOT / f"notebooks/{name}.ipynb")] for name in MACHINE
    )
    assert colab[3:] == kaggle[2:]


@pytest.fixture
def run_cells(tmp_path, monkeypatch):
    """Return a function that runs the first cells of a notebook in `tmp_path`, at the smallest
    size, and returns what they put out.
    """
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    # `python` of a shell is the one of these tests, and finds the package without its being
    # installed.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TPO_JAX_SCALE", "smoke")

    def run(name: str, count: int | None = None) -> list[dict]:
        if name in MACHINE:
            monkeypatch.setenv("TPO_JAX_MACHINE", MACHINE[name])
        notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
        notebook.cells = notebook.cells[:count]
        client = nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        client.execute()
        return [output for cell in notebook.cells for output in cell.get("outputs", ())]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_it_runs_top_to_bottom(name, smoke_quickstart, run_cells, tmp_path):
    folder, _ = smoke_quickstart
    (tmp_path / "quickstart").symlink_to(folder)
    outputs = run_cells(name)
    for left in LEFT[name]:
        assert (tmp_path / left).exists(), left
    texts = "".join(output.get("text", "") for output in outputs)
    if name in MACHINE:
        assert texts.startswith(MACHINES[MACHINE[name]].title)
        assert "train: 0 min" in texts and "GB at the peak" in texts
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) >= 2


def test_kaggle_chooses_its_machine_and_runs_the_commands_of_colab(run_cells, monkeypatch):
    """Its other cells are those of Colab, which run above."""
    name = "04_finetune_on_kaggle"
    outputs = run_cells(name, SETTINGS)
    machines = {place: MACHINES[machine] for place, machine in MACHINE.items()}
    assert outputs[0]["text"].startswith(machines[name].title)
    chosen = ast.literal_eval(outputs[-1]["data"]["text/plain"])
    monkeypatch.setenv("TPO_JAX_SCALE", "smoke")
    places = {"TOPOLOGY": machines[name].topology}  # which the smallest size does not read
    assert chosen == settings_of(machines["02_finetune_your_pairs"]) | places
