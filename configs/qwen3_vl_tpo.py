"""TPO on Qwen3-VL, with the published hyper-parameters nearest to it.

python -m tpo_jax.train --config=configs/qwen3_vl_tpo.py --workdir=DIR \
  --config.model.checkpoint=Qwen3-VL-8B-Instruct --config.data.shards=SHARDS

Beta, weight of the supervised term, learning rate, warm-up and what is frozen are those of
ms-swift's recipe for DPO on Qwen3-VL (`examples/train/cached_dataset/dpo.sh` of
modelscope/ms-swift): full fine-tuning of the 30B-A3B model with at most 16 frames. Its rate falls
to 1e-6, here to 0.

Variants: those of `configs/longva_tpo.py`. Not run at these sizes yet: no score to report.
"""

from ml_collections import ConfigDict

from tpo_jax.study.rows import apply_variant
from tpo_jax.training.experiment import base


def get_config(variant: str = "tpo") -> ConfigDict:
    """Return the experiment, or one of its variants."""
    config = base()
    config.data.num_frames = 64
    config.objective.beta = 0.1
    config.objective.alpha = 0.1
    config.train.learning_rate = 1e-5
    config.train.warmup_ratio = 0.05
    config.train.freeze = ("tower", "projector", "deepstack")
    return apply_variant(config, variant)
