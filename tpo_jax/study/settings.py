"""The plan of the study at miniature size: how much of everything, which runs, in which order."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tpo_jax.study.records import StudyRun
from tpo_jax.study.rows import IMPROVED, NOISY, PARTLY, ROUNDS, ROWS, rounds_before, tiny
from tpo_jax.study.stages import LONG_FRAMES, SCALES, Scale

# Language, short videos and encoders are the same for all seeds, as the paper's models have one
# CLIP and one SigLIP; they are made with a seed of their own.
COMMON_SEED = 40
# Both of the paper's models were made of one language model: the base of a family starts from the
# decoder of another family's base of the same seed, and sees the same videos.
DECODER_OF = {"tiny_llava_video": "tiny_longva"}
# The order of the runs: what is compared most often comes first, for all seeds.
WAVES = (
    ("tiny_longva", ("base", "tpo", "best", "sft_self", "dpo", "sft_truth")),
    ("tiny_longva", IMPROVED),
    ("tiny_longva", ("localized_only", "comprehensive_only", "sft_llm", "hound_dpo")),
    ("tiny_longva", (*ROUNDS, *NOISY, *PARTLY)),
    ("tiny_llava_video", ("base", "tpo")),
    ("tiny_longva", ("mix_8_2", "mix_5_5", "mix_2_8", "scale_20", "scale_50")),
    ("tiny_longva", ("noisy_judge", "frames_48", "stretched")),
    ("tiny_longva", ("judge_off", "rrpo", "leanpo")),
)
# What is asked of whom beyond `Choices.frames` and short videos, all of the family that figures are
# about: further numbers of frames, needles, questions with another video.
CURVE_OF = {
    *("base", "tpo", "best", "sft_self", "sft_truth", "dpo", "hound_dpo", *IMPROVED, *ROUNDS),
    *("frames_48", "stretched", "base_stretched"),
}
NEEDLES_OF = {"base", "tpo", "best"}
BLIND_OF = {"base", "tpo", "best"}


@dataclasses.dataclass(frozen=True)
class Choices:
    """What was chosen on the development seed and holds for all others; `choices.json` has it.

    Attributes:
        scale: of videos, models and pairs; Table 3 uses a fifth and a half of the pairs as well.
        adapting_steps: of a base that starts from another's decoder.
        frames: numbers of frames at which every row is evaluated.
        curve: further numbers of frames, for the rows of Figure 2.
        lengths: frames of the haystack.
        needles: how many.
    """

    scale: Scale
    adapting_steps: int
    frames: tuple[int, ...] = (32, 64)
    curve: tuple[int, ...] = (8, 16, 48, 96)
    lengths: tuple[int, ...] = (16, 32, 48, 64, 96)
    needles: int = 24


CHOICES = {
    "full": Choices(SCALES["full"], adapting_steps=900),
    "smoke": Choices(
        dataclasses.replace(SCALES["smoke"], long_videos=6, eval_videos=4),
        *(3, (32,), (), (8,), 2),
    ),
}


def draws(family: str) -> int:
    """Return how many answers are drawn to every question: two where a row is made of them."""
    names = (name for of, names in WAVES for name in names if of == family)
    sources = (row.source for name in names if (row := ROWS[name].miniature))
    return 2 if "sampled" in sources else 0


def runs(wanted: Iterable[tuple[str, str]], seeds: Sequence[int]) -> list[StudyRun]:
    """Return the runs of all seeds for (family, row), in the order of `WAVES`.

    What they are trained on is among them: bases of `DECODER_OF`, the rounds before.
    """
    wanted = set(wanted)
    wanted |= {(DECODER_OF[family], "base") for family, _ in wanted if family in DECODER_OF}
    wanted |= {(family, before) for family, row in wanted for before in rounds_before(row)}
    return [
        StudyRun(family, seed, row)
        for family, rows in WAVES
        for seed in seeds
        for row in rows
        if (family, row) in wanted
    ]


def row_config(directory: Path, name: str, scale: Scale, seed: int) -> ConfigDict:
    """Return the config of a row: as many updates of as many pairs as any other."""
    row, config = ROWS[name], tiny()
    assert row.miniature
    config.model.checkpoint = str(directory / row.miniature.start / "model")
    if row.miniature.first:
        config.model.reference = str(directory / "base" / "model")
    config.data.shards = str(directory / f"{row.miniature.pairs}_shards")
    if share := row.miniature.replay:
        config.data.replay = (str(directory / "replay_shards"),)
        config.data.replay_weights = (1 - share, share)
        config.data.sampling = "fps"  # short videos as the base saw them
    config.data.num_frames = LONG_FRAMES
    if row.miniature.share < 1:
        config.data.limit = round(row.miniature.share * scale.pairs)
    config.data.subset_seed = 1  # of the order in which subsets are nested
    config.train.num_steps = row.miniature.updates * scale.updates
    config.train.seed = seed
    config.update_from_flattened_dict({**row.changes, **row.miniature.changes})
    return config
