"""Curation on the synthetic world, whose truth is known: scripted replies fill every role.

python -m tpo_jax.curate --config=configs/curate_world.py --workdir=DIR \
  --config.videos.folder=VIDEOS --config.rules.world_seed=SEED

VIDEOS are those that `tpo_jax.worlds.world.make_videos` rendered with SEED; runs in seconds.
`docs/results/curation.md` is what came out.
"""

from ml_collections import ConfigDict

from tpo_jax.curation.config import base


def get_config() -> ConfigDict:
    """Return the config."""
    config = base()
    for name in ("captioner", "questioner", "answerer", "judge"):
        config[name].backend = "rules"
    config.segments.localized = 4
    config.segments.comprehensive = 2
    config.questions.per_segment = 4
    config.segments.min_seconds = 8.0
    config.segments.max_seconds = 24.0
    config.answers.localized_rejected = ("rest", "irrelevant")
    config.answers.comprehensive_rejected = (
        "sparse:8",
        "drop:4",
        "shuffle:8",
        "reverse:8",
        "other",
    )
    return config
