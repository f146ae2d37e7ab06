"""Localized and comprehensive pairs of a folder of videos, by one model alone, no outside service.

python -m tpo_jax.curate --config=configs/curate_local.py --workdir=DIR \
  --config.videos.folder=VIDEOS --config.local.checkpoint=LongVA-7B

The model captions, asks, answers and judges. Not run at 7B yet: no yield to report.
"""

from ml_collections import ConfigDict

from tpo_jax.curation.config import base


def get_config() -> ConfigDict:
    """Return the config."""
    return base()
