"""The paper's experiments on the embedded world: base models of several seeds, every one trained on
pairs made from its own answers in all the ways that the paper compares.

This file is the plan: how much of everything, the variants, their configs and their order.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tpo_jax.study import miniature
from tpo_jax.study.rows import ROWS, tiny

# Language, short videos and towers are the same for all seeds, as the paper's models have one CLIP
# and one SigLIP; they are made with a seed of their own.
COMMON_SEED = 40
# Both of the paper's models were made of one language model: the base of a family begins with the
# decoder of another family's base of the same seed, and sees the same videos.
DECODER_OF = {"tiny_llava_video": "tiny_longva"}
# The figures are of one family.
CURVE_OF = {
    ("tiny_longva", name) for name in ("base", "tpo", "frames_48", "stretched", "base_stretched")
}
NEEDLES_OF = {("tiny_longva", "base"), ("tiny_longva", "tpo")}  # and asked with another video


@dataclasses.dataclass(frozen=True)
class Choices:
    """What was chosen on the development seed and holds for all others."""

    scale: miniature.Scale
    pairs: int  # of the full data; Table 3 has a fifth and a half of it as well
    steps: int  # updates of every variant
    adapting_steps: int  # of a base that begins with another's decoder
    localized: int = 3  # localized questions per long video
    flips: float = 0.2  # share of verdicts that the noisy judge turns round
    slips: float = 0.1  # share of the other model's answers that are wrong
    frames: tuple[int, ...] = (32, 64)  # at which every variant is asked
    curve: tuple[int, ...] = (8, 16, 48, 96)  # and base and TPO besides
    lengths: tuple[int, ...] = (16, 32, 48, 64, 96)  # frames of the haystack
    needles: int = 24


CHOICES = {
    "full": Choices(
        miniature.Scale(
            short_videos=9000, varied=True, tower_steps=3000, base_steps=1500, long_videos=1500
        ),
        pairs=2400,
        steps=250,
        adapting_steps=450,
    ),
    "smoke": Choices(
        dataclasses.replace(miniature.SCALES["smoke"], varied=True, long_videos=6, eval_videos=4),
        *(8, 2, 3, 1, 0.2, 0.1, (32,), (), (8,), 2),
    ),
}


# What matters most comes first, for all seeds, then the next.
WAVES = (
    ("tiny_longva", ("base", "tpo", "localized_only", "comprehensive_only")),
    ("tiny_longva", ("sft_self", "sft_llm", "hound_dpo")),
    ("tiny_llava_video", ("base", "tpo")),
    ("tiny_longva", ("mix_8_2", "mix_2_8", "scale_20", "scale_50")),
    ("tiny_longva", ("noisy_judge", "frames_48", "stretched")),
    ("tiny_longva", ("dpo", "judge_off", "rrpo", "leanpo")),
)


def draws(family: str) -> int:
    """Answers drawn to every question: two, where a variant of the family is made of such."""
    names = (name for of, names in WAVES for name in names if of == family and name != "base")
    miniatures = (ROWS[name].miniature for name in names)
    return 2 if any(row and row.source == "sampled" for row in miniatures) else 0


@dataclasses.dataclass(frozen=True)
class Run:
    """A family, a seed and a variant, or `base`."""

    family: str
    seed: int
    variant: str

    def directory(self, workdir: Path) -> Path:
        """Where everything of this family and seed lies."""
        return workdir / self.family / f"seed_{self.seed}"

    def answers(self, workdir: Path) -> Path:
        """What the run leaves, its last deed."""
        return self.directory(workdir) / f"{self.variant}_answers.json"

    def needles(self, workdir: Path) -> Path:
        """What `base` and `tpo` leave besides."""
        return self.directory(workdir) / f"{self.variant}_needles.json"


def runs(wanted: Iterable[tuple[str, str]], seeds: Sequence[int]) -> list[Run]:
    """Runs of all seeds for (family, variant), in the order of `WAVES`, with the bases of
    `DECODER_OF` that they need.
    """
    wanted = set(wanted)
    wanted |= {(DECODER_OF[family], "base") for family, _ in wanted if family in DECODER_OF}
    return [
        Run(family, seed, variant)
        for family, variants in WAVES
        for seed in seeds
        for variant in variants
        if (family, variant) in wanted
    ]


def variant_config(directory: Path, name: str, choices: Choices, seed: int) -> ConfigDict:
    """Return the config of a row: as many updates of as many pairs as any other."""
    row, config = ROWS[name], tiny()
    assert row.miniature
    config.model.checkpoint = str(directory / row.miniature.start / "model")
    config.data.shards = str(directory / f"{row.miniature.source}_shards")
    config.data.num_frames = miniature.LONG_FRAMES
    config.data.mixing = (0.5, 0.5)  # localized, comprehensive
    config.data.limit = round(row.miniature.share * choices.pairs)
    config.data.subset_seed = 1  # of the order in which subsets are nested
    config.data.pairs_per_row = 1  # a batch is then full, whatever the pairs of a video
    config.train.num_steps = choices.steps
    config.train.seed = seed
    config.update_from_flattened_dict({**row.changes, **row.miniature.changes})
    return config
