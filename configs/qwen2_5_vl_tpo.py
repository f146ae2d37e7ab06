"""TPO on Qwen2.5-VL, with the published hyper-parameters nearest to it.

python -m tpo_jax.train --config=configs/qwen2_5_vl_tpo.py --workdir=DIR \
  --config.model.checkpoint=Qwen2.5-VL-7B-Instruct --config.data.shards=SHARDS

Learning rate, warm-up and what is frozen are those of ms-swift's recipe for DPO on Qwen2.5-VL-7B
(`examples/train/multimodal/rlhf/dpo/full.sh` of modelscope/ms-swift): full fine-tuning on pairs
about images. It names no beta, which is 0.1 there by default. The weight of the supervised term is
that of ms-swift's recipe for Qwen3-VL, as in `configs/qwen3_vl_tpo.py`.

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
    config.train.freeze = ("tower", "projector")
    return apply_variant(config, variant)
