"""The embedded world on one CPU: the same program as the large runs, in minutes.

python -m tpo_jax.train --config=configs/tiny.py --workdir=DIR --config.data.shards=SHARDS \
  --config.model.checkpoint=BASE
"""

from configs import common


def get_config():
    """TPO on the embedded world."""
    config = common.base()
    config.data.pairs_per_row = 4
    config.data.prefix_multiple = 8
    config.data.response_multiple = 8
    config.objective.beta = 0.1
    config.objective.alpha = 0.25
    config.compute.dtype = "float32"
    config.compute.remat = "none"
    config.train.learning_rate = 5e-4
    config.train.b2 = 0.98
    return config
