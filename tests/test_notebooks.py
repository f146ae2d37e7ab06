"""The notebooks run top to bottom, at the smallest size; committed ones hold no outputs."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tpo_jax.study.machines import MACHINES

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
LEFT["04_finetune_on_kaggle"] = LEFT["02_finetune_your_pairs"]
MACHINE = {"02_finetune_your_pairs": "colab_v5e", "04_finetune_on_kaggle": "kaggle_v5e"}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == list(LEFT)


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_top_to_bottom(path, smoke_quickstart, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    folder, _ = smoke_quickstart
    (tmp_path / "quickstart").symlink_to(folder)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    # `python` of a shell is the one of these tests, and finds the package without its being
    # installed.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TPO_JAX_SCALE", "smoke")
    if path.stem in MACHINE:
        monkeypatch.setenv("TPO_JAX_MACHINE", MACHINE[path.stem])
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    for name in LEFT[path.stem]:
        assert (tmp_path / name).exists(), name
    texts = "".join(
        output.get("text", "") for c in notebook.cells for output in c.get("outputs", ())
    )
    if path.stem in MACHINE:
        assert texts.startswith(MACHINES[MACHINE[path.stem]].title)
        assert "train: 0 min" in texts and "GB at the peak" in texts
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]
    assert len(pictures) >= 2
