"""Tiny models on disk, one of each family, whose weights are random."""

import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from tests.random_params import random_params
from tests.tiny_run import tiny_config
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.families.qwen_vl.template import QWEN3

PRESETS = {"Qwen3-VL": "tiny_qwen3_vl", "Qwen2.5-VL": "tiny_qwen2_5_vl"}


def save_tokenizer(world, folder) -> None:
    """Write the tiny world's tokenizer with the vision tokens."""
    tokenizer = Tokenizer.from_file(str(world / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens(list(QWEN3.markers[2:]))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def config_of(world, **model) -> ConfigDict:
    """Return a run of one step on the tiny world."""
    config = tiny_config(world)
    config.model.preset = ""
    config.model.tokenizer = ""
    config.model.update(model)
    config.data.eval_shards = ""
    config.data.limit = config.train.batch_size
    config.train.num_epochs, config.train.eval_every = 1, 0
    return config


@pytest.fixture(scope="session", params=PRESETS)
def sizes(request):
    return families.preset(PRESETS[request.param])


@pytest.fixture(scope="session")
def initial(sizes, tiny_world, tmp_path_factory):
    """The native directory of random weights; tests only read it."""
    folder = tmp_path_factory.mktemp("initial")
    save_tokenizer(tiny_world, folder / "tokenizer")
    params = random_params(sizes, seed=1)
    save_model(folder / "model", sizes, params, folder / "tokenizer")
    return folder / "model"


@pytest.fixture(scope="session")
def video(tiny_world):
    return sorted((tiny_world / "videos").glob("*.mp4"))[0]
