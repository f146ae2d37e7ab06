"""TPO on the embedded world, on CPU: the same program as the large runs, in a minute.

python -m tpo_jax.train --config=configs/tiny.py --workdir=DIR --config.data.shards=SHARDS \
  --config.model.checkpoint=BASE

`python -m tpo_jax.quickstart` makes base and shards and runs it; `docs/results/quickstart.md` is
what it scored. Variants as in `configs/longva_tpo.py`.
"""

from configs import common


def get_config(variant: str = "tpo"):
    """The experiment, or one of its baselines."""
    config = common.base()
    config.data.pairs_per_row = 4
    config.data.prefix_multiple = 8
    config.data.response_multiple = 1
    config.data.workers = 0  # small files: processes cost more than they bring
    config.data.cache_mib = 512  # all there are
    config.objective.beta = 0.1
    config.objective.alpha = 1.0
    config.compute.dtype = "float32"
    # Many small steps: at the same cost, steps of 64 pairs gain half as much.
    config.train.batch_size = 16
    config.train.num_epochs = 2
    config.train.learning_rate = 5e-4
    config.train.b2 = 0.98
    config.train.log_every = 20
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return common.apply_variant(config, variant)
