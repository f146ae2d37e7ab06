"""The needle test: the scores of the PyTorch original, on any mesh; files, and the command."""

import dataclasses
import json

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.commands import call
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.data.processor import Processor
from tpo_jax.errors import InputError
from tpo_jax.evaluation import niah, niah_cells, niah_files
from tpo_jax.families.llava_qwen.template import INFERENCE
from tpo_jax.inference.model import place
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

LENGTHS, DEPTHS = [3, 8, 14], [0.0, 0.5, 1.0]
SAID = "<|endoftext|>"  # the token 0


def mesh_of(**sizes):
    shape = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes
    return make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        [INFERENCE.head, "\nWhich digit?\nAnswer with one word."], vocab_size=300
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory, tokenizer):
    """A released checkpoint of a tiny LongVA whose config asks for a second pooling, and the
    PyTorch model it stems from.
    """
    from tests import originals

    decoder = dataclasses.replace(originals.LONGVA.decoder, width=64, vocab_size=300)
    tower = dataclasses.replace(originals.LONGVA.tower, width=40, mlp_width=48)
    config = dataclasses.replace(originals.LONGVA, tower=tower, decoder=decoder)
    model = originals.Original(config, seed=3)
    values = model.config_values()
    model.config_values = lambda: values | {"mm_resampler_type": "spatial_pool"}
    folder = tmp_path_factory.mktemp("original")
    originals.write_checkpoint(folder, model)
    return model, load_model(folder)


def torch_logits(model, tokenizer, frames, needle, cell):
    """Logits `[n, W]` of the whole sequence, the needle put in by concatenating embeddings."""
    import torch

    head = tokenizer.encode(INFERENCE.head, add_special_tokens=False).ids
    at = int(cell.depth * cell.frames)
    with torch.no_grad():
        haystack, odd = (model.encode(torch.tensor(x)) for x in (frames, needle.frame[None]))
        V = len(odd)
        parts = haystack[: at * V], odd, haystack[at * V : cell.frames * V]
        text = [*needle.prompt.tolist(), *needle.answer.tolist()]
        return model.lm_head(model.hidden_of([head, torch.cat(parts), text])).numpy()


def test_scores_are_those_of_pytorch_on_any_mesh(original, tokenizer) -> None:
    """The answers of the needles are what PyTorch says in one cell each, but for the last."""
    model, loaded = original
    processor = Processor(loaded.config, tokenizer)
    assert loaded.config.tokens_per_frame == 9  # 6 x 6 patches, pooled once
    draws = np.random.default_rng(0)
    frames = draws.integers(0, 256, (16, 24, 24, 3), np.uint8)
    needles = []
    for i, cell in enumerate([(3, 1.0), (8, 0.5), (14, 0.0), (14, 1.0)]):
        odd = draws.integers(0, 256, (24, 24, 3), np.uint8)
        needle = niah_cells.make_needle(processor, odd, f"\nWhich digit {i}?", "yes")
        needle = needle._replace(answer=needle.answer[:0])
        for _ in range(2):
            found = torch_logits(model, tokenizer, frames, needle, niah_cells.Cell(*cell, i))[-1]
            needle = needle._replace(answer=np.append(needle.answer, found.argmax()))
        needles.append(needle)
    needles[-1].answer[0] += 1

    expected = np.zeros((3, 3, 4), bool)
    for i, j, k in np.ndindex(expected.shape):
        cell = niah_cells.Cell(LENGTHS[i], DEPTHS[j], k)
        logits = torch_logits(model, tokenizer, frames, needles[k], cell)
        expected[i, j, k] = (logits[-3:-1].argmax(-1) == needles[k].answer).all()
    assert expected.any() and not expected.all()
    for sizes, rows in (({}, 4), ({"fsdp": 2, "tensor": 2, "context": 2}, 1)):
        mesh = mesh_of(**sizes)
        placed = place(processor, loaded.params, mesh)
        assert (niah.grid(placed, frames, needles, LENGTHS, DEPTHS, rows) == expected).all()


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Two checkpoints; the first says nothing but the token 0."""
    root = tmp_path_factory.mktemp("models")
    save_tokenizer(tokenizer, root / "tokenizer")
    config = families.preset("tiny_longva")
    for seed in (0, 1):
        params = random_params(config, seed)
        params["decoder"]["head"]["kernel"] *= seed
        save_model(root / str(seed), config, params, root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """Twelve seconds."""
    (video,) = make_videos(tmp_path_factory.mktemp("movie"), seed=2, seconds=[12], workers=1)
    return video.path


@pytest.fixture
def needles(tmp_path):
    """Two images of other shapes than a square, and one that is not there."""
    rows = []
    for name, size, answer in (
        ("wide", (50, 20), SAID),
        ("tall", (9, 30), "no"),
        ("gone", 0, SAID),
    ):
        if size:
            Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        rows.append({"path": f"{name}.png", "prompt": f"\n{name}?", "answer": answer})
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    return tmp_path / "dataset.json"


def test_the_published_needles(shared_media, tokenizer, tmp_path) -> None:
    """Three of the five images are there; as a table they are the same."""
    processor = Processor(families.preset("tiny_longva"), tokenizer)
    listed = shared_media / "needles/dataset.json"
    asked, problems = niah_files.read_needles(listed, processor)
    assert len(asked) == 3 and len(problems) == 2
    assert all(".png: No such file" in problem for problem in problems)
    assert [len(needle.answer) > 0 for _, needle in asked] == [True] * 3
    frames = np.stack([needle.frame for _, needle in asked])
    assert frames.shape == (3, 32, 32, 3) and len(np.unique(frames, axis=0)) == 3
    rows = [
        {
            "image": {"bytes": (listed.parent / row["path"]).read_bytes(), "path": row["path"]},
            "question": row["prompt"],
            "answer": row["answer"],
        }
        for row in json.loads(listed.read_text())
        if (listed.parent / row["path"]).is_file()
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "needles.parquet")
    again, problems = niah_files.read_needles(tmp_path / "needles.parquet", processor)
    assert not problems and [key for key, _ in again] == [key for key, _ in asked]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"path": "a\0.png"}, "null"),
        ({"prompt": "half \ud800"}, "no valid Unicode"),
        ({"answer": None}, "must be texts"),
        ({"path": 3}, "must name an image"),
    ],
)
def test_unusable_needles_are_named(row, message, needles, tokenizer) -> None:
    rows = json.loads(needles.read_text())
    rows[0] |= row
    needles.write_text(json.dumps(rows))
    processor = Processor(families.preset("tiny_longva"), tokenizer)
    asked, problems = niah_files.read_needles(needles, processor)
    assert len(asked) == 1 and message in problems[0]
    needles.write_text("[" * 100_000)
    with pytest.raises(InputError, match="dataset.json: cannot be read"):
        niah_files.read_needles(needles, processor)


def test_command(models, movie, needles, compiled, tmp_path, monkeypatch) -> None:
    """A run that grows on two devices, the files it writes, and what the user can do wrong."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    out, short = tmp_path / "out", tmp_path / "short"
    flags = {"checkpoint": models / "0", "haystack": movie, "needles": needles, "output": out}
    flags |= {"min_frames": 4, "max_frames": 12, "frame_step": 4, "depth_step": 0.5}
    flags |= {"dtype": "float32", "batch_size": 6}
    allowed = flags | {"allow_missing": True}
    missing, part, whole, *wrong = call(
        "evaluate",
        flags,
        allowed | {"max_frames": 8},
        allowed,
        allowed | {"checkpoint": models / "1"},
        allowed | {"max_frames": 13, "min_frames": 13, "output": short},
        allowed | {"max_frames": 3},
        allowed | {"haystack": needles},
        allowed | {"haystack": ""},
        allowed | {"haystack": "gone.mp4"},
        allowed | {"needles": "gone.json"},
        allowed | {"needles": movie},
        allowed | {"depth_step": "nan"},
        allowed | {"output": ""},
        command="niah",
    )
    assert missing.code == 2 and "1 of 3 needles cannot be asked" in missing.err
    assert "gone.png" in missing.err
    assert (part.code, whole.code) == (0, 0), part.err + whole.err
    assert [json.loads(result.out)["cells"] for result in (part, whole)] == [12, 18]
    cells = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()[1:]]
    # Nothing was asked twice.
    assert len({(x["frames"], x["depth"], x["needle"]) for x in cells}) == len(cells) == 18
    printed = json.loads(whole.out)
    assert json.loads((out / "summary.json").read_text()) == printed
    assert printed["partial"] and printed["missing"] == 1
    assert (printed["score"], printed["needle"]) == (0.5, {"0": 1.0, "1": 0.0})
    assert json.loads((out / "all_accuracies.json").read_text()) == [
        {"Num. Frame": n, "Frame Depth": depth, "Score": 0.5}
        for n in (4, 8, 12)
        for depth in (0.0, 50.0, 100.0)
    ]
    assert (out / "avg_accuracy.txt").read_text() == "Average Accuracy: 0.5\n"
    with Image.open(out / "heatmap.png") as picture:
        assert picture.size == (1750, 800)
    messages = ("weights", "12 frames, one per second", "min_frames", "dataset.json")
    messages += ("--haystack", "--haystack=gone.mp4: no such", "--needles=gone.json: no such")
    messages += ("cannot be read", "--depth_step=nan", "--output=: must name a file")
    for result, message in zip(wrong, messages, strict=True):
        assert (result.code, result.out) == (2, "")
        assert message in (line := result.err.splitlines()[-1]) and line.startswith("error: ")
    assert not short.exists()
