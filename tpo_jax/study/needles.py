"""Needles in a haystack of the synthetic world: a dark frame with a coloured digit among frames of
videos without digits.
"""

import dataclasses
from pathlib import Path

import numpy as np

from tpo_jax.evaluation import niah, niah_cells
from tpo_jax.inference.model import load
from tpo_jax.study.records import NeedlesFound
from tpo_jax.study.stages import LONG_SECONDS
from tpo_jax.worlds.render import render
from tpo_jax.worlds.timeline import CORNERS, DIGITS, HUES, Timeline, WorldNeedle, make_timeline

DEPTHS = niah_cells.depths(0.2)
SPACING = 3  # seconds between frames, as in the training of TPO


def haystack(seed: int, num_frames: int) -> np.ndarray:
    """Return frames of one video after the other, without needles: uint8 `[num_frames, S, S, 3]`.

    There is one frame every `SPACING` seconds.
    """
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < num_frames:
        index, seconds = len(parts), LONG_SECONDS
        timeline = dataclasses.replace(make_timeline(seed, index, seconds), needle=None)
        parts.append(render(timeline, seed, index)[::SPACING])
    return np.concatenate(parts)[:num_frames]


def search(model: Path, seed: int, lengths: tuple[int, ...], count: int) -> NeedlesFound:
    """Return the share of `count` needles found at every length and depth.

    Args:
        seed: of the needles and the haystack.
        lengths: of the haystack, frames.
        count: needles per length and depth.
    """
    loaded = load(model, mesh={"data": -1})
    processor, rng = loaded.processor, np.random.default_rng(seed)
    needles = []
    for index in range(count):
        hue, digit, corner = index % len(HUES), *rng.integers((len(DIGITS), len(CORNERS)))
        shown = WorldNeedle(0, 1, hue, int(digit), int(corner))
        [frame] = processor.resize(render(Timeline(1, (), shown), seed, index))
        question = f"\nWhich number is written in {HUES[hue]}?"
        answer = f"The number is {DIGITS[shown.digit]}."
        needles.append(niah_cells.make_needle(processor, frame, question, answer))
    frames = processor.resize(haystack(seed, max(lengths)))
    found = niah.grid(loaded, frames, needles, lengths, DEPTHS, batch_rows=64)
    return NeedlesFound(lengths, tuple(DEPTHS), found.mean(axis=2).tolist())
