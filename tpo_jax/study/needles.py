"""Needles in a haystack of the embedded world: a dark frame with a coloured digit among frames of
videos that have none.
"""

import dataclasses
from pathlib import Path

import numpy as np

from tpo_jax import families
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.evaluation import niah
from tpo_jax.study import miniature
from tpo_jax.worlds.render import render
from tpo_jax.worlds.timeline import CORNERS, DIGITS, HUES, Needle, Timeline, make_timeline

DEPTHS = niah.depths(0.2)
SPACING = 3  # seconds between frames, as TPO sees long videos


def haystack(seed: int, num_frames: int) -> np.ndarray:
    """Frames every `SPACING` seconds of one video after the other, their needles left out: uint8
    `[num_frames, S, S, 3]`.
    """
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < num_frames:
        index, seconds = len(parts), miniature.LONG_SECONDS
        timeline = dataclasses.replace(make_timeline(seed, index, seconds), needles=())
        parts.append(render(timeline, seed, index)[::SPACING])
    return np.concatenate(parts)[:num_frames]


def search(directory: Path, model: str, seed: int, lengths: tuple[int, ...], count: int) -> dict:
    """The share of `count` needles found at every length (frames) and depth.

    Returns:
        `lengths`, `depths` and `found`, `[lengths][depths]`.
    """
    generator = miniature.generator_of(directory / model / "model")
    tokenizer = load_tokenizer(directory / "tokenizer")
    config, rng = generator.config, np.random.default_rng(seed)
    preprocess = families.of(config).preprocess
    needles = []
    for index in range(count):
        hue, digit, corner = index % len(HUES), *rng.integers((len(DIGITS), len(CORNERS)))
        shown = Needle(0, 1, hue, int(digit), int(corner))
        [frame] = preprocess(render(Timeline(1, (), (shown,)), seed, index), config)
        question = f"\nWhich number is written in {HUES[hue]}?"
        answer = f"The number is {DIGITS[shown.digit]}."
        needles.append(niah.make_needle(tokenizer, frame, question, answer))
    frames = preprocess(haystack(seed, max(lengths)), config)
    found = niah.grid(
        generator.config,
        generator.params,
        tokenizer,
        frames,
        needles,
        lengths,
        DEPTHS,
        generator.mesh,
        batch_rows=64,
    )
    shares = found.mean(axis=2).tolist()
    return {"lengths": list(lengths), "depths": DEPTHS, "found": shares}
