"""The train command on shards with pairs of two answers and pairs of two videos."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.tiny_run import FRAMES, final_state, metrics, same_bits, tiny_config
from tpo_jax import train as command
from tpo_jax.checkpoints.models import load_model
from tpo_jax.data import preparation
from tpo_jax.errors import InputError
from tpo_jax.train import train

WEIGHT, STEPS = 0.8, 4


@pytest.fixture(scope="module")
def world(tiny_world, tmp_path_factory):
    """Shards of the tiny world with five more pairs, and held-out ones with two more."""
    root = tmp_path_factory.mktemp("two_videos")
    for name, more in (("pairs", 5), ("held_out", 2)):
        lines = (tiny_world / f"{name}.jsonl").read_text().splitlines()
        answers = [json.loads(line) for line in lines]
        videos = sorted({pair["video"] for pair in answers})
        for i in range(more):
            pair = answers[i * 4 % len(answers)]
            other = videos[(videos.index(pair["video"]) + 1 + i) % len(videos)]
            two = {name: pair[name] for name in ("video", "prompt", "chosen")}
            lines.append(json.dumps(two | {"rejected_video": other, "id": f"two-{i}"}))
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        preparation.prepare(
            root / f"{name}.jsonl",
            tiny_world / "videos",
            root / name,
            preparation.Settings(num_frames=FRAMES),
            preparation.Work(),
        )
    return root


def two_videos_config(tiny_world, world):
    config = tiny_config(tiny_world)
    config.data.shards, config.data.eval_shards = str(world / "pairs"), str(world / "held_out")
    config.data.video_pairs = 4
    config.objective.video_weight, config.objective.video_anchor = WEIGHT, 0.1
    config.train.num_steps = STEPS
    return config


@pytest.fixture
def config(tiny_world, world):
    return two_videos_config(tiny_world, world)


@pytest.fixture(scope="module")
def finished(tiny_world, world, tmp_path_factory):
    """The working directory of a whole run, which tests only read."""
    workdir = tmp_path_factory.mktemp("work")
    train(two_videos_config(tiny_world, world), workdir)
    return workdir


def test_both_kinds_begin_at_ln_2_and_are_told_apart(finished):
    records = metrics(finished)
    first, last = records[0], records[-1]
    assert first["losses/dpo"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["video/losses/dpo"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["losses/total"] == pytest.approx((1 + WEIGHT + 0.1) * np.log(2), abs=1e-5)
    assert first["video/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert [(r["pairs"], r["video/pairs"]) for r in records] == [(8, 4)] * STEPS
    assert last["video/losses/dpo"] < first["video/losses/dpo"]
    assert last["video/rewards/margins"] > 0 and last["rewards/margins"] > 0
    assert last["video/rewards/margins"] != last["rewards/margins"]
    evaluated = [r for r in records if "eval/pairs" in r]
    assert [(r["eval/pairs"], r["eval/video/pairs"]) for r in evaluated] == [(5, 2)] * 2
    assert evaluated[-1]["eval/video/losses/dpo"] != evaluated[-1]["eval/losses/dpo"]


def test_a_run_resumes_bit_for_bit(finished, config, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "work")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    shutil.rmtree(workdir / "model")
    train(config, workdir)
    assert metrics(workdir) == metrics(finished)
    assert same_bits(final_state(workdir, STEPS), final_state(finished, STEPS))


def test_adapters_on_a_quantized_decoder(finished, config, tmp_path):
    config.model.preset, config.model.tokenizer = "", ""
    config.model.checkpoint, config.model.weights = str(finished / "model"), "int8"
    config.lora.rank, config.train.freeze = 2, ("tower", "projector")
    config.train.learning_rate = 1e-2
    config.train.eval_every, config.train.num_steps = 0, 3
    train(config, tmp_path)
    records = metrics(tmp_path)
    assert records[0]["losses/dpo"] == pytest.approx(np.log(2), abs=1e-6)
    assert records[0]["video/losses/dpo"] == pytest.approx(np.log(2), abs=1e-6)
    assert records[-1]["video/losses/dpo"] != records[0]["video/losses/dpo"]
    before, after = (
        jax.device_get(load_model(folder / "model").params["decoder"]["layers"]["q"]["kernel"])
        for folder in (finished, tmp_path)
    )
    assert np.abs(before - after).max() > 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.video_weight": 0.0, "objective.video_anchor": 0.0},
            "objective.video_weight=0.0 must be above 0 to train on data.video_pairs=4",
        ),
        ({"objective.video_weight": -1.0}, "objective.video_weight=-1.0 must not be negative"),
        (
            {"data.video_pairs": 0},
            "objective.video_weight and .* weights of pairs of two vid",
        ),
        ({"data.video_pairs": -4}, "data.video_pairs=-4 must not be negative"),
        (
            {
                **{"data.video_pairs": 0, "objective.video_weight": 0.0},
                "objective.video_anchor": 0.0,
            },
            "5 of 29 pairs are one answer on two videos .* set objective.video_weight and data.vid",
        ),
        ({"data.video_pairs": 3}, r"14 rows .* use 8 or 16 rows .* add 2 \* data.video_pairs"),
        ({"compute.micro_batches": 2}, r"16 rows .* 2\*data\*fsdp\*micro_batches=32"),
    ],
)
def test_wrong_configs_are_named_before_anything_is_written(config, tmp_path, changes, message):
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message) as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_shards_without_such_pairs_are_named(config, tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "compile_meanwhile", lambda step, *_, **__: step)
    held_out = config.data.eval_shards
    config.data.eval_shards = str(tiny_world / "held_out")
    config.train.keep_best = "max:eval/video/rewards/accuracies"
    with pytest.raises(InputError, match="no such metric; there are"):
        train(config, tmp_path)
    config.data.shards, config.data.eval_shards = str(tiny_world / "shards"), held_out
    with pytest.raises(InputError, match="shards holds no pair of two videos to train on"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())
