"""Two tiny random models, media, and the real server in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.adapted import save_adapted
from tpo_jax import families
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ["What happens?", "Who is there?", "Is it red, or is it blue?", "Why?"]
FLAGS = {"num_frames": 4, "max_new_tokens": 16}


class Served(NamedTuple):
    """A running server."""

    url: str
    process: subprocess.Popen


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder with models `base` and `tpo`, the adapters between them, and in `media` a video,
    images and a broken file.
    """
    folder = tmp_path_factory.mktemp("serving")
    save_tokenizer(train_tokenizer(QUESTIONS, vocab_size=270), folder / "tokenizer")
    config = families.preset("tiny_llava_video")
    places = {"base": folder / "base", "merged": folder / "tpo"}
    save_adapted(config, 0, folder / "tokenizer", adapters=folder / "adapters/tpo", **places)
    (video,) = make_videos(folder / "media", seed=1, seconds=[8], workers=1)
    Path(video.path).rename(folder / "media/video.mp4")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 36, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "media/image.png")
    (folder / "media/frames").mkdir()
    for i in range(4):
        frame = Image.fromarray(np.roll(pixels, 3 * i, axis=1))
        frame.save(folder / f"media/frames/{i}.png")
    (folder / "media/broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 nothing")
    (folder / "outside.mp4").write_bytes((folder / "media/video.mp4").read_bytes())
    (folder / "media/link.mp4").symlink_to(folder / "outside.mp4")
    return folder


@pytest.fixture(scope="session")
def server(folder) -> Iterator[Served]:
    """The command with a base, its adapters and the base alone, and small limits."""
    flags = FLAGS | {
        "checkpoint": folder / "base",
        "adapters": folder / "adapters/tpo",
        "compare": folder / "base",
        "media_folders": folder / "media",
        "port": 0,
        "max_upload_mb": 2,
        "max_batch": 4,
        "max_frames": 16,
        "wait_ms": 100,
        "video_of_images": 2,
    }
    command = [sys.executable, "-m", "tpo_jax.serve", *(f"--{k}={v}" for k, v in flags.items())]
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    url = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    yield Served(url, process)
    process.terminate()
    process.wait(30)
    # Nothing temporary is left behind.
    assert not list(folder.glob("tpo_jax_serve_*"))
