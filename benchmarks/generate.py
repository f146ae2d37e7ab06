"""Generation against `transformers` in PyTorch, and one encoding of a video against eight.

    python benchmarks/generate.py [--repeats=5] [--output=FILE.md]

Same random weights, same cores, float32, one run; every way is timed in turn and the best of the
repeats counts. Prints Markdown tables.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.originals import Original, write_checkpoint
from tpo_jax import families
from tpo_jax.checkpoints.models import load_model
from tpo_jax.generation.decode import Limits, decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import ModelConfig

REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of every measurement.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "File for the tables, besides standard output.")

F, P, R, NEW = 32, 512, 16, 128  # frames, prefix, question and new tokens
B, M = 8, 8  # videos of the comparison, questions of one video
GREEDY = Sampling()


def best(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return seconds of every way, the best of interleaved repeats after one that compiles."""
    seconds = {name: float("inf") for name in ways}
    for repeat in range(REPEATS.value + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def make_batch(config: ModelConfig, rows: int, questions: int) -> Batch:
    """Return random videos and texts: text, the visual tokens, text, and the questions."""
    draws, S = np.random.default_rng(0), config.tower.image_size
    n, W = config.visual_tokens(F), config.decoder.vocab_size
    length = max(P, n + 32)
    index = np.full((rows, length), -1, np.int32)
    index[:, 16 : 16 + n] = np.arange(n)
    texts = (rows, questions, 1, R)
    return Batch(
        frames=draws.integers(0, 256, (rows, F, S, S, 3), np.uint8),
        prefix_ids=np.where(index < 0, draws.integers(0, W, index.shape, np.int32), 0),
        prefix_mask=np.ones(index.shape, bool),
        visual_index=index,
        input_ids=draws.integers(0, W, texts, np.int32),
        input_mask=np.ones(texts, bool),
        target_ids=np.zeros(texts, np.int32),
        target_mask=np.zeros(texts, bool),
        seeds=np.zeros(rows, np.uint32),
    )


def generate(config: ModelConfig, params: dict, batch: Batch, new: int) -> np.ndarray:
    """Return greedy tokens `[B, M, new]`."""
    shape = batch.input_ids.shape[:2]
    vocabulary = config.decoder.vocab_size
    limits = Limits(np.full(shape, new, np.int32), np.array([-1], np.int32), vocabulary)
    prefix, state = prefill(config, params, batch, GREEDY, limits, new_tokens=NEW)
    state = decode(config, params, prefix, state, batch.seeds, GREEDY, limits, new - 1)
    return np.asarray(state.tokens)[:, :, :new]


class Torch:
    """The same model in PyTorch: towers of `transformers`, and its `generate` for the decoder."""

    def __init__(self, original: Original):
        values = original.qwen_config.to_dict() | {"attn_implementation": "sdpa"}
        self.decoder = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values)).eval()
        self.decoder.model.load_state_dict(original.model.state_dict(), strict=False)
        self.decoder.lm_head.load_state_dict(original.lm_head.state_dict())
        self.original = original.eval()

    @torch.inference_mode()
    def generate(self, batch: Batch, new: int) -> np.ndarray:
        """Return greedy tokens `[B, new]` of one question per row."""
        rows = len(batch.frames)
        frames = torch.from_numpy(batch.frames).flatten(0, 1)
        visual = self.original.encode(frames)
        ids = np.concatenate([batch.prefix_ids, batch.input_ids[:, 0, 0]], axis=1)
        embeds = self.decoder.model.embed_tokens(torch.from_numpy(ids))
        embeds[:, 16 : 16 + len(visual) // rows] = visual.reshape(rows, -1, embeds.shape[-1])
        settings = transformers.GenerationConfig(
            max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return self.decoder.generate(
            inputs_embeds=embeds, attention_mask=mask, generation_config=settings
        ).numpy()


def against_transformers(config: ModelConfig) -> list[list[str]]:
    """Return rows of prefill and decode rates."""
    original = Original(config)
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), original)
        params = load_model(directory).params
    theirs, batch = Torch(original), make_batch(config, B, 1)
    same = (generate(config, params, batch, NEW)[:, 0] == theirs.generate(batch, NEW)).mean()
    seconds = best(
        {
            "prefill": lambda: generate(config, params, batch, 1),
            "torch prefill": lambda: theirs.generate(batch, 1),
            "all": lambda: generate(config, params, batch, NEW),
            "torch all": lambda: theirs.generate(batch, NEW),
        }
    )
    tokens = B * (batch.prefix_ids.shape[1] + R)
    rows = []
    for name, count, ours, torchs in (
        ("prefill", tokens, seconds["prefill"], seconds["torch prefill"]),
        (
            "decode",
            B * (NEW - 1),
            seconds["all"] - seconds["prefill"],
            seconds["torch all"] - seconds["torch prefill"],
        ),
    ):
        rates = [f"{count / ours:,.0f}", f"{count / torchs:,.0f}", f"{torchs / ours:.2f}"]
        rows.append([name, *rates, f"{same:.0%}"])
    return rows


def one_against_eight(name: str, config: ModelConfig) -> list[str]:
    """Return a row: eight questions of one video, three ways."""
    original = Original(config)
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), original)
        params = load_model(directory).params
    once = make_batch(config, 1, M)
    eight = dataclasses.replace(
        jax.tree.map(lambda x: np.repeat(x, M, axis=0), once),
        input_ids=once.input_ids.reshape(M, 1, 1, R),
        input_mask=once.input_mask.reshape(M, 1, 1, R),
    )
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], eight) for i in range(M)]
    new = 8
    seconds = best(
        {
            "once": lambda: generate(config, params, once, new),
            "batch": lambda: generate(config, params, eight, new),
            "calls": lambda: [generate(config, params, row, new) for row in rows],
        }
    )
    together, apart = (generate(config, params, batch, new) for batch in (once, eight))
    same = (together[0] == apart[:, 0]).mean()
    return [
        name,
        str(once.prefix_ids.shape[1]),
        f"{seconds['once'] * 1e3:.0f}",
        f"{seconds['batch'] * 1e3:.0f}",
        f"{seconds['batch'] / seconds['once']:.1f}",
        f"{seconds['calls'] * 1e3:.0f}",
        f"{seconds['calls'] / seconds['once']:.1f}",
        f"{same:.0%}",
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return the table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    torch.set_num_threads(os.cpu_count() or 1)
    tiny = families.preset("tiny_llava_video")
    finer = dataclasses.replace(
        tiny, tower=dataclasses.replace(tiny.tower, image_size=64, patch_size=8)
    )
    text = f"""# Generation, measured

float32 on {os.cpu_count()} CPU cores shared with other programs; jax {jax.__version__},
PyTorch {torch.__version__}, transformers {transformers.__version__}. Random weights, the same on
both sides. Best of {REPEATS.value} interleaved repeats, without compilation. Ratios carry over
to other machines better than rates.

Written by `python benchmarks/generate.py --output=docs/results/generate.md`.

## Against `transformers` in PyTorch

`tiny_llava_video`, {B} videos of {F} frames, {P} prefix and {R} question tokens each, greedy, {NEW}
new tokens. Prefill includes the vision tower and the first new token. PyTorch: `generate` of
`Qwen2ForCausalLM` with `sdpa` attention.

"""
    head = ["", "tokens/s", "PyTorch tokens/s", "ours over PyTorch", "equal tokens"]
    text += table(head, against_transformers(tiny))
    text += f"""
## One video, {M} questions

{F} frames, {R} tokens a question, 8 new tokens each. *Once*: all questions read one encoding of
the video; against {M} rows in one batch and {M} calls.

"""
    head = ["model", "prefix", "once, ms", f"{M} rows, ms", "ratio"]
    head += [f"{M} calls, ms", "ratio", "equal tokens"]
    rows = [
        one_against_eight("tiny_longva, 1 token a frame", families.preset("tiny_longva")),
        one_against_eight("tiny_llava_video, 2 tokens a frame", tiny),
        one_against_eight("the same with 8x8 patches, 20 tokens a frame", finer),
    ]
    text += table(head, rows)
    print(text, end="")
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
