"""LLaVA-Video-7B-TPO: the paper's run on LLaVA-Video (arXiv 2501.13919, section 4.1).

python -m tpo_jax.train --config=configs/llava_video_tpo.py --workdir=DIR \
  --config.model.checkpoint=LLaVA-Video-7B-Qwen2 --config.data.shards=SHARDS

Variants: those of `configs/longva_tpo.py`. Not run at 7B yet: no score to report.
"""

from ml_collections import ConfigDict

from tpo_jax.study.rows import apply_variant
from tpo_jax.training.experiment import base


def get_config(variant: str = "tpo") -> ConfigDict:
    """Return the experiment, or one of its variants."""
    config = base()
    config.data.num_frames = 32
    config.objective.beta = 0.2
    config.objective.alpha = 1.0
    config.train.learning_rate = 3e-7
    return apply_variant(config, variant)
