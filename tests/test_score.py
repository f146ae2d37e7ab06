"""The score door: sums of the model's token log-probabilities, in the order of the list."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.doors import call
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.data import images, prompts, sampling
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.models import classic, vlm
from tpo_jax.models.config import preset, visual_tokens
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

PAIRS = [
    {
        "id": "a",
        "video": "v0",
        "prompt": "What?",
        "chosen": "A ball",
        "rejected": "Nothing here",
    },
    {"id": "b", "video": "v1", "prompt": "<image>\nWho is there?", "chosen": "é", "rejected": "?"},
    {"id": "c", "video": "v0", "prompt": "Where?", "chosen": "In the box.", "rejected": "Here."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, two videos, three pairs."""
    folder = tmp_path_factory.mktemp("score")
    texts = [text for pair in PAIRS for text in pair.values()]
    save_tokenizer(train_tokenizer(texts, vocab_size=270), folder / "tokenizer")
    config = preset("tiny_longva")
    save_model(folder / "model", config, vlm.init_params(config, 0), folder / "tokenizer")
    draws = np.random.default_rng(0)
    for name in ("v0", "v1"):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(6):
            frame = Image.fromarray(draws.integers(0, 256, (40, 32, 3), np.uint8))
            frame.save(folder / "videos" / name / f"{i}.png")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return folder


def logps(function, loaded, folder, pair):
    """[2] sums by one of the model's layouts, one pair at a time."""
    tokenizer = load_tokenizer(folder / "model")
    config = loaded.config
    frames, times, duration = sampling.read_frames(folder / "videos" / pair["video"], "uniform", 4)
    row = prompts.build_row(
        tokenizer,
        [prompts.strip_placeholder(pair["prompt"])],
        [[pair["chosen"], pair["rejected"]]],
        visual_tokens(config, 4),
        opening=prompts.time_opening("inline", times.tolist(), duration),
    )
    batch = {"frames": images.preprocess(frames, config.tower), **row._asdict()}
    batch = {name: values[None] for name, values in batch.items()}
    sums = function(vlm.bind(config, loaded.params), batch).sum(axis=(1, 3))[0]
    tokens = [len(tokenizer.encode(pair[name]).ids) + 2 for name in ("chosen", "rejected")]
    return np.asarray(sums), tokens


def test_scores_and_wrong_input(folder, tmp_path) -> None:
    flags = {
        "checkpoint": folder / "model",
        "pairs": folder / "pairs.jsonl",
        "videos": folder / "videos",
        "num_frames": 4,
        "output": tmp_path / "scores.jsonl",
        "time_instruction": "inline",
        "batch_size": 2,
    }
    missing = [*PAIRS, {**PAIRS[0], "id": "d", "video": "v2"}]
    (tmp_path / "missing.jsonl").write_text("".join(json.dumps(p) + "\n" for p in missing))
    invalid = [PAIRS[0], {**PAIRS[1], "prompt": "<image> <image>"}]
    (tmp_path / "invalid.jsonl").write_text("".join(json.dumps(p) + "\n" for p in invalid))
    failed = tmp_path / "failed.jsonl"
    wrong = [
        ({"pairs": tmp_path / "missing.jsonl"}, "missing.jsonl:4"),
        ({"pairs": tmp_path / "invalid.jsonl"}, "invalid.jsonl:2"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 2000, "time_instruction": "none"}, "frames would fit"),
        ({"output": tmp_path / "nowhere" / "scores.jsonl"}, "nowhere"),
        ({"checkpoint": folder}, "config.json"),
    ]
    good, one, *results = call(
        "score",
        flags,
        flags | {"batch_size": 1, "output": tmp_path / "one.jsonl"},
        *(flags | {"output": failed} | change for change, _ in wrong),
    )
    assert good.code == one.code == 0, good.err + one.err
    loaded = load_model(folder / "model")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").open()]
    assert [line["id"] for line in lines] == [pair["id"] for pair in PAIRS]
    for pair, line in zip(PAIRS, lines, strict=True):
        scored = [line["chosen_logp"], line["rejected_logp"]]
        for function in (vlm.VideoLanguageModel.token_logps, classic.token_logps):
            sums, tokens = logps(function, loaded, folder, pair)
            np.testing.assert_allclose(scored, sums, atol=1e-4, rtol=0)
            assert [line["chosen_tokens"], line["rejected_tokens"]] == tokens
    for line, other in zip(lines, (tmp_path / "one.jsonl").open(), strict=True):
        assert json.loads(other) == pytest.approx(line, abs=1e-4)

    for (change, message), result in zip(wrong, results, strict=True):
        assert (result.code, result.out) == (2, ""), change
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not failed.exists()
    assert not list(tmp_path.glob(".*"))
