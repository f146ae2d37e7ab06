"""Quantized weights against bfloat16 on a trained model: log-probabilities and greedy answers.

    python -m tpo_jax.quickstart --workdir=DIR
    python benchmarks/quantized.py --quickstart=DIR [--model=base] [--pairs=500] [--output=FILE.md]

The pairs are those of the quickstart, on its long videos. float32 beside bfloat16 shows what
rounding alone does.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tpo_jax
from tpo_jax.inference.scoring import Score
from tpo_jax.models.quantized import LARGEST
from tpo_jax.study.stages import LONG_FRAMES

QUICKSTART = flags.DEFINE_string("quickstart", None, "Its working directory.", required=True)
MODEL = flags.DEFINE_string("model", "base", "Which of its models: base or tpo.")
PAIRS = flags.DEFINE_integer("pairs", 500, "At least so many, of videos drawn at random.")
OUTPUT = flags.DEFINE_string("output", None, "File for the page, besides standard output.")

HEAD = """# Quantized weights, measured

`model.weights=int8` has a scale for every output of a layer, `int4` one for every group of at most 128
inputs (`tpo_jax/models/quantized.py`). Here the `{model}` model of the quickstart, which is trained, scores
{pairs} pairs of {videos} long videos and answers their questions greedily; each way of storing the
decoder's layers is held against bfloat16. The layers compute in bfloat16, in the row `float32` in float32.

<!-- needs: data -->
```bash
python -m tpo_jax.quickstart --workdir=DIR
python benchmarks/quantized.py --quickstart=DIR --model={model} --pairs={asked} --output=docs/results/quantized.md
```

- *error a token*: absolute difference of an answer's summed log-probability, over its tokens.
- *preferred answer the same*: of the pairs, the answer with the higher log-probability is the same.
- *greedy answers the same*: of the questions, the whole text is the same.

The row `float32` is what rounding to bfloat16 alone does: an error of that size costs nothing. The model is
tiny; larger ones are known to lose less by the same steps, which was not measured here. Videos are taken
whole, so that there may be a few pairs more than asked for.

| weights | layers, MB | error a token, mean | largest | preferred answer the same | greedy answers the same |
|---|---|---|---|---|---|
"""  # noqa: E501


class Found(NamedTuple):
    """What one way of storing the weights gives."""

    megabytes: float  # of the decoder's layers
    scores: list[Score]
    answers: list[str]


def drawn(pairs: Sequence[dict], least: int) -> list[dict]:
    """Return all pairs of so many random videos, video after video, that there are enough."""
    of_video: dict[str, list[dict]] = {}
    for pair in pairs:
        of_video.setdefault(pair["video"], []).append(pair)
    found: list[dict] = []
    for video in np.random.default_rng(0).permutation(sorted(of_video)):
        if len(found) < least:
            found += of_video[video]
    return found


def measure(directory: Path, pairs: Sequence[dict], videos: Path, **how: str) -> Found:
    """Score all pairs and answer all of their questions."""
    model = tpo_jax.load(directory, mesh={}, **how)
    layers = jax.tree.leaves(model.params["decoder"]["layers"])
    bits = sum(x.size * jax.dtypes.itemsize_bits(x.dtype) for x in layers)
    answers = []
    for video, asked in itertools.groupby(pairs, lambda pair: pair["video"]):
        questions = [pair["prompt"] for pair in asked]
        answers += model.answer(
            videos / video, questions, num_frames=LONG_FRAMES, max_new_tokens=12
        )
    scores = model.score(pairs, videos=videos, num_frames=LONG_FRAMES)
    return Found(bits / 8e6, scores, answers)


def line(name: str, found: Found, exact: Found) -> str:
    """Return a row of the table: one way of storing the weights against another."""
    logps, wanted = (
        np.array([[score.chosen_logp, score.rejected_logp] for score in x.scores])
        for x in (found, exact)
    )
    counts = np.array([[s.chosen_tokens, s.rejected_tokens] for s in exact.scores])
    errors = np.abs(logps - wanted) / counts
    same = np.sign(logps @ (1, -1)) == np.sign(wanted @ (1, -1))
    equal = [a == b for a, b in zip(found.answers, exact.answers, strict=True)]
    return (
        f"| {name} | {found.megabytes:.2f} | {errors.mean():.4f} | {errors.max():.4f} "
        f"| {100 * same.mean():.1f}% | {100 * np.mean(equal):.1f}% |\n"
    )


def main(_) -> None:
    """Print the page."""
    workdir = Path(QUICKSTART.value)
    lines = (workdir / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = drawn([json.loads(line) for line in lines], PAIRS.value)
    ways = {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}}
    ways |= {weights: {"dtype": "bfloat16", "weights": weights} for weights in LARGEST}
    model = workdir / MODEL.value / "model"
    found = {name: measure(model, pairs, workdir / "long", **how) for name, how in ways.items()}
    videos = len({pair["video"] for pair in pairs})
    head = HEAD.format(
        model=MODEL.value, pairs=f"{len(pairs):,}", videos=f"{videos:,}", asked=PAIRS.value
    )
    table = head + "".join(line(name, x, found["bfloat16"]) for name, x in found.items())
    print(table)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(table, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
