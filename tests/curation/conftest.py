"""Rendered videos, a model, and configs of runs that take a second."""

import subprocess
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.config_files import load
from tests.curation.fake_endpoint import serve
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer, world_texts
from tpo_jax.worlds.world import make_videos

SEED = 3


@pytest.fixture(scope="session")
def world_videos(tmp_path_factory) -> Path:
    """Five videos of the synthetic world; not to be written to."""
    folder = tmp_path_factory.mktemp("world") / "videos"
    make_videos(folder, SEED, [60, 48, 96, 80, 72], workers=1)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A model with random weights, which replies nonsense in every role; not to be written to."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(train_tokenizer(world_texts(0, 20), vocab_size=400), folder / "tokenizer")
    config = families.preset("tiny_longva")
    save_model(folder / "random", config, families.init_params(config, 0), folder / "tokenizer")
    return folder / "random"


@pytest.fixture
def world_config(world_videos) -> ConfigDict:
    """Scripted replies in every role."""
    config = load("curate_world").get_config()
    config.videos.folder = str(world_videos)
    config.rules.world_seed = SEED
    config.segments.localized = 3
    config.segments.comprehensive = 3
    config.shards.workers = 1
    config.shards.num_frames = 4
    return config


@pytest.fixture
def curate_command(tmp_path, start_command):
    """Return a function that starts the command on a config, with more flags and variables."""

    def start(config: ConfigDict, *arguments: str, **variables: str) -> subprocess.Popen:
        file = tmp_path / "config.py"
        file.write_text(  # JSON turns tuples into lists
            "import json\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
            f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
        )
        return start_command("curate", f"--config={file}", *arguments, variables=variables)

    return start


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint, its key in the environment, and an `openai` that waits little before a retry."""
    monkeypatch.setenv("CURATION_TEST_KEY", "secret")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with serve() as found:
        yield found


@pytest.fixture
def fast_charts(monkeypatch) -> None:
    """Draw no charts, which take half of the time of a small run."""
    monkeypatch.setattr("tpo_jax.curation.run.charts", lambda numbers, units: {})


@pytest.fixture
def endpoint_config(world_config, endpoint, fast_charts) -> ConfigDict:
    """The endpoint in every role."""
    config = world_config
    for name in ("captioner", "questioner", "answerer", "judge"):
        config[name].backend = "openai"
        config[name].num_frames = min(config[name].num_frames, 2)
    config.questioner.num_frames = config.judge.num_frames = 0
    config.answerer.num_frames = 4
    config.answers.comprehensive_rejected = ("sparse:2", "other")
    config.segments.localized = config.segments.comprehensive = 1
    config.questions.per_segment = 2
    config.openai.url = endpoint.url
    config.openai.model = "fake"
    config.openai.key_variable = "CURATION_TEST_KEY"
    config.openai.backoff = 0.001
    config.openai.timeout = 0.4
    config.openai.retries = 8
    config.openai.image_size = 16
    return config
