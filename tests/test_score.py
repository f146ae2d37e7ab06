"""Scores of pairs: sums of the model's token log-probabilities, in the order of the list."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.adapted import save_adapted
from tests.batches import one_row
from tests.commands import call
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.checkpoints.models import load_model
from tpo_jax.data import images, prompts
from tpo_jax.data.collate import collate
from tpo_jax.data.processor import Processor
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.families.llava_qwen.template import INFERENCE
from tpo_jax.inference import scoring
from tpo_jax.inference.model import load, place
from tpo_jax.models import classic
from tpo_jax.models.batch import BatchShape
from tpo_jax.video import sampling
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
    """A random model, also as a base and its adapters, two videos, three pairs."""
    folder = tmp_path_factory.mktemp("score")
    texts = [text for pair in PAIRS for text in pair.values()]
    save_tokenizer(train_tokenizer(texts, vocab_size=270), folder / "tokenizer")
    config = families.preset("tiny_longva")
    places = {name: folder / name for name in ("base", "adapters")}
    save_adapted(config, 0, folder / "tokenizer", merged=folder / "model", **places)
    draws = np.random.default_rng(0)
    for name in ("v0", "v1"):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(6):
            frame = Image.fromarray(draws.integers(0, 256, (40, 32, 3), np.uint8))
            frame.save(folder / "videos" / name / f"{i}.png")
    tall = Image.fromarray(draws.integers(0, 256, (80, 30, 3), np.uint8))
    tall.save(folder / "videos" / "tall.png")
    (folder / "mixed.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in MIXED))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return folder


MIXED = [
    {**PAIRS[0], "id": "text", "video": None},
    PAIRS[1],
    {**PAIRS[2], "id": "one", "video": None, "image": "v0/1.png"},
    {
        **PAIRS[2],
        "id": "two",
        "video": None,
        "images": ["v0/1.png", "tall.png"],
        "prompt": "From <image> to <image>?",
    },
]


def test_many_tpus_run_the_kernel(folder, program_for_tpus) -> None:
    heads = {"heads": 2, "kv_heads": 2, "head_dim": 128}
    config = families.preset("tiny_longva")
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **heads))
    processor = Processor(config, load_tokenizer(folder / "model"))
    model = place(processor, random_params(config), {"fsdp": 8})

    def run():
        return model.score(PAIRS, videos=folder / "videos", num_frames=4)

    assert "tpu_custom_call" in program_for_tpus(scoring, "score_batch", run)


def still_logps(loaded, folder, pair):
    """[2] sums by the classic layout, for a pair without a video."""
    config, tokenizer = loaded.config, load_tokenizer(folder / "model")
    paths = pair.get("images") or [pair[name] for name in ("image",) if name in pair]
    pictures = images.read_pictures([folder / "videos" / path for path in paths], config)
    answers = [[pair["chosen"], pair["rejected"]]]
    row = prompts.build_row(
        tokenizer, [pair["prompt"]], answers, pictures.tokens, template=INFERENCE
    )
    return summed(loaded, one_row(config, pictures, row))[0]


def summed(loaded, batch):
    """[B, 2] sums over the tokens of the answers by the classic layout."""

    @jax.jit
    def sums(params, batch):
        return classic.token_logps(families.bind(loaded.config, params), batch).sum(axis=(1, 3))

    return np.asarray(sums(loaded.params, batch))


def logps(loaded, folder, style):
    """[n, 2] sums of the pairs on videos, and the numbers of labelled tokens."""
    tokenizer, config = load_tokenizer(folder / "model"), loaded.config
    rows, visuals = [], []
    for pair in PAIRS:
        video = folder / "videos" / pair["video"]
        frames, times, duration = sampling.read_frames(video, "uniform", 4)
        row = prompts.build_row(
            tokenizer,
            [prompts.strip_placeholder(pair["prompt"])],
            [[pair["chosen"], pair["rejected"]]],
            config.visual_tokens(4),
            opening=INFERENCE.time_opening("inline", times.tolist(), duration),
            template=families.of(config).templates[style],
        )
        rows.append(row)
        visuals.append(families.of(config).preprocess(frames, config))
    shape = BatchShape(
        rows=len(rows),
        prefix=max(row.prefix_ids.size for row in rows),
        questions=1,
        answers=2,
        response=max(row.input_ids.shape[-1] for row in rows),
        frames=4,
        frame_shape=config.frame_shape,
        prefix_labels=rows[0].target_at is not None,
    )
    sums = summed(loaded, collate(config, rows, visuals, shape))
    labels = 8 if style == "dpo_trainer" else 2
    names = ("chosen", "rejected")
    return sums, [[len(tokenizer.encode(p[name]).ids) + labels for name in names] for p in PAIRS]


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
    counts = [{**MIXED[3], "prompt": "<image> <image> <image>?"}]
    (tmp_path / "counts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in counts))
    broken = [{**MIXED[2], "image": "../pairs.jsonl"}, {**MIXED[2], "image": "none.png"}]
    for name, pair in zip(("outside", "absent"), broken, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(pair) + "\n")
    wrong = [
        ({"pairs": tmp_path / "missing.jsonl"}, "missing.jsonl:4"),
        ({"pairs": tmp_path / "invalid.jsonl"}, "invalid.jsonl:2"),
        ({"num_frames": 0}, "num_frames"),
        ({"pairs": tmp_path / "counts.jsonl"}, "counts.jsonl:1: prompt: 3 <image> placeholders"),
        ({"pairs": tmp_path / "outside.jsonl"}, "must be a path inside"),
        ({"pairs": tmp_path / "absent.jsonl"}, "none.png: cannot be read as an image"),
        ({"num_frames": 2000, "time_instruction": "none"}, "frames would fit"),
        ({"output": tmp_path / "nowhere" / "scores.jsonl"}, "nowhere"),
        ({"checkpoint": folder}, "config.json"),
    ]
    parts = {"checkpoint": folder / "base", "adapters": folder / "adapters"}
    good, one, trainer, mixed, *refused = call(
        "score",
        flags,
        flags | parts | {"batch_size": 1, "output": tmp_path / "one.jsonl"},
        flags | {"prompt_style": "dpo_trainer", "output": tmp_path / "trainer.jsonl"},
        flags | {"pairs": folder / "mixed.jsonl", "output": tmp_path / "mixed.jsonl"},
        *(flags | {"output": failed} | change for change, _ in wrong),
    )
    assert good.code == one.code == trainer.code == 0, good.err + one.err + trainer.err
    loaded = load_model(folder / "model")
    for name, style in (("trainer", "dpo_trainer"), ("scores", "inference")):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        assert [line["id"] for line in lines] == [pair["id"] for pair in PAIRS]
        sums, tokens = logps(loaded, folder, style)
        found = [[line["chosen_logp"], line["rejected_logp"]] for line in lines]
        np.testing.assert_allclose(found, sums, atol=1e-4, rtol=0)
        assert [[line["chosen_tokens"], line["rejected_tokens"]] for line in lines] == tokens
    assert mixed.code == 0, mixed.err
    scored = [json.loads(line) for line in (tmp_path / "mixed.jsonl").open()]
    assert [line["id"] for line in scored] == [pair["id"] for pair in MIXED]
    assert scored[1] == pytest.approx(lines[1], abs=1e-4)
    for pair, line in zip(MIXED, scored, strict=True):
        if not pair["video"]:
            found = [line["chosen_logp"], line["rejected_logp"]]
            sums = still_logps(loaded, folder, pair)
            np.testing.assert_allclose(found, sums, atol=1e-4, rtol=0)
    for line, other in zip(lines, (tmp_path / "one.jsonl").open(), strict=True):
        assert json.loads(other) == pytest.approx(line, abs=1e-4)
    # The same in Python, from records.
    results = load(folder / "model").score(MIXED, videos=folder / "videos", num_frames=4)
    for line, pair, result in zip(scored, MIXED, results, strict=True):
        if not pair["video"]:  # the command's videos had a sentence on their times
            assert dataclasses.asdict(result) == pytest.approx(line, abs=1e-4)

    for (change, message), result in zip(wrong, refused, strict=True):
        assert (result.code, result.out) == (2, ""), change
        (line,) = result.err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not failed.exists()
    assert not list(tmp_path.glob(".*"))
