"""The needle test: the scores of the PyTorch original, on any mesh; files, and the door."""

import dataclasses

import jax
import numpy as np
import pytest

from tpo_jax.checkpoints.models import load_model
from tpo_jax.data.prompts import HEAD
from tpo_jax.evaluation import niah
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings
from tpo_jax.worlds.tokenizer import train_tokenizer

LENGTHS, DEPTHS = [3, 8, 14], [0.0, 0.5, 1.0]


def mesh_of(**sizes):
    shape = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes
    return make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([HEAD, "\nWhich digit?\nAnswer with one word."], vocab_size=300)


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

    head = tokenizer.encode(HEAD, add_special_tokens=False).ids
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
    config = loaded.config
    assert config.tokens_per_frame == 9  # 6 x 6 patches, pooled once
    draws = np.random.default_rng(0)
    frames = draws.integers(0, 256, (16, 24, 24, 3), np.uint8)
    needles = []
    for i, cell in enumerate([(3, 1.0), (8, 0.5), (14, 0.0), (14, 1.0)]):
        odd = draws.integers(0, 256, (24, 24, 3), np.uint8)
        needle = niah.make_needle(tokenizer, odd, f"\nWhich digit {i}?", "yes")
        needle = needle._replace(answer=needle.answer[:0])
        for _ in range(2):
            found = torch_logits(model, tokenizer, frames, needle, niah.Cell(*cell, i))[-1]
            needle = needle._replace(answer=np.append(needle.answer, found.argmax()))
        needles.append(needle)
    needles[-1].answer[0] += 1

    expected = np.zeros((3, 3, 4), bool)
    for i, j, k in np.ndindex(expected.shape):
        cell = niah.Cell(LENGTHS[i], DEPTHS[j], k)
        logits = torch_logits(model, tokenizer, frames, needles[k], cell)
        expected[i, j, k] = (logits[-3:-1].argmax(-1) == needles[k].answer).all()
    print(expected)
    assert expected.any() and not expected.all()
    for sizes, rows in (({}, 4), ({"fsdp": 2, "tensor": 2, "context": 2}, 1)):
        mesh = mesh_of(**sizes)
        params = jax.device_put(loaded.params, parameter_shardings(mesh, loaded.params))
        how = (tokenizer, frames, needles, LENGTHS, DEPTHS, mesh, rows)
        assert (niah.grid(config, params, *how) == expected).all()
