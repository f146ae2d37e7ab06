"""A family that only the tests know is prepared for, trained, asked and converted: what a new
family needs is a folder and a line in the registry.
"""

import json
import math

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.commands import call_module
from tests.families.toy import TEMPLATE
from tpo_jax import families
from tpo_jax.errors import InputError

CONFIG = """
from tpo_jax.training.experiment import base

def get_config():
    config = base()
    config.model.preset = "toy"
    config.model.tokenizer = {tokenizer!r}
    config.data.shards = {shards!r}
    config.data.num_frames = 3
    config.data.prefix_multiple = 1
    config.data.workers = 0
    config.objective.alpha = 0.0
    config.compute.dtype = "float32"
    config.train.batch_size = 2
    config.train.num_epochs = 1
    config.train.log_every = 1
    return config
"""


def write_inputs(folder) -> None:
    """Two videos as folders of frames, four pairs, a tokenizer and a config."""
    rng = np.random.default_rng(0)
    for name, frames in (("v0", 3), ("v1", 2)):  # the second is padded with an empty frame
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(frames):
            frame = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
            frame.save(folder / "videos" / name / f"{i}.png")
    pairs = [
        {"video": f"v{i % 2}", "prompt": f"What is {i}?", "chosen": "A cat.", "rejected": f"No {i}"}
        for i in range(4)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    places = {name: str(folder / name) for name in ("tokenizer", "shards")}
    (folder / "config.py").write_text(CONFIG.format(**places))


@pytest.mark.slow
def test_a_family_outside_the_package_trains_and_answers(tmp_path) -> None:
    write_inputs(tmp_path)
    native, published = tmp_path / "run" / "model", tmp_path / "published"
    videos, shards = tmp_path / "videos", tmp_path / "shards"
    pairs = {"pairs": tmp_path / "pairs.jsonl", "videos": videos, "frames": "png"}
    question = {"video": videos / "v0", "prompt": "What is this?", "dtype": "float32"}
    question |= {"num_frames": 3, "max_new_tokens": 5}

    def succeeds(command: str, **flags) -> str:
        given = [f"--{name}={value}" for name, value in flags.items()]
        [result] = call_module("tests.families.toy", [command, *given])
        assert result.code == 0, result.err
        return result.out

    succeeds("prepare", **pairs, num_frames=3, output=shards)
    succeeds("train", config=tmp_path / "config.py", workdir=tmp_path / "run")
    answer = succeeds("generate", checkpoint=native, **question)
    succeeds("convert", input=native, output=published)
    assert answer and answer == succeeds("generate", checkpoint=published, **question)
    metrics = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["losses/total"] for record in metrics]
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert json.loads((native / "config.json").read_text())["family"] == "toy"
    assert json.loads((published / "config.json").read_text())["model_type"] == "toy"


def test_a_template_without_a_sentence_on_frame_times_says_so() -> None:
    with pytest.raises(InputError, match="no sentence on frame times"):
        TEMPLATE.time_opening("inline", [0.0], 1.0)


def test_a_directory_of_an_unknown_family_is_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match="'toy' is unknown"):
        families.named("toy")
    assert families.named(None).name == "llava_qwen"  # written before there were families
