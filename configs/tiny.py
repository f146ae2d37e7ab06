"""TPO on the synthetic world, on CPU: the same program as the large runs, in a minute.

python -m tpo_jax.train --config=configs/tiny.py --workdir=DIR --config.data.shards=SHARDS \
  --config.model.checkpoint=BASE

`python -m tpo_jax.quickstart` makes BASE and SHARDS and runs this config;
`docs/results/quickstart.md` has the scores. Variants: those of `configs/longva_tpo.py`.
"""

from tpo_jax.study.rows import tiny as get_config

__all__ = ["get_config"]
