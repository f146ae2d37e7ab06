"""Rendered videos, a model, and configs of runs that take a second."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
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
ROOT = Path(__file__).resolve().parents[2]

# Imports, which take the time, once for both; then each runs the command as a program.
_TWO_PROCESSES = """
import os, runpy, sys
import tpo_jax.curation.run, tpo_jax.train

name, address, *arguments = sys.argv[1:]
children = []
for index in (0, 1):
    if not (child := os.fork()):
        sys.argv = [name, f"--distributed={address},2,{index}", *arguments]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        sys.exit()
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def write_config(path: Path, config: ConfigDict) -> Path:
    """Write a config as a file that flags name; JSON turns its tuples into lists."""
    path.write_text(
        "import json\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json_best_effort()!r}))\n"
    )
    return path


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
        file = write_config(tmp_path / "config.py", config)
        return start_command("curate", f"--config={file}", *arguments, variables=variables)

    return start


@pytest.fixture
def start_two(tiny_variables) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a command as two processes with their devices each, the group
    of one process that ends after them, badly if one of them does; all are killed at the end.
    """
    groups = []

    def start(command: str, *arguments: str, devices: int) -> subprocess.Popen:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        variables = tiny_variables | {"JAX_NUM_CPU_DEVICES": str(devices)}
        group = subprocess.Popen(
            [sys.executable, "-c", _TWO_PROCESSES, f"tpo_jax.{command}", address, *arguments],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        groups.append(group)
        return group

    yield start
    for group in groups:
        if group.poll() is None:
            os.killpg(group.pid, signal.SIGKILL)
        group.communicate()


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
