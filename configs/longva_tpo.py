"""LongVA-7B-TPO: the paper's run on LongVA (arXiv 2501.13919, section 4.1).

python -m tpo_jax.train --config=configs/longva_tpo.py --workdir=DIR \
  --config.model.checkpoint=LongVA-7B --config.data.shards=SHARDS

Variants: `:sft_self` (supervised on the chosen answers) and `:hound_dpo` (Table 1), `:scale_2k` and
`:scale_5k` (Table 3), `:localized_only` and `:comprehensive_only` (Table 4), `:mix_8_2` and
`:mix_2_8` (Table 5), `:dpo` (no supervised term); later methods: `:rrpo` and `:leanpo`
(`docs/objectives.md`). `:robust` is the quickstart's recipe: batches of 32 or 64 frames, short
videos with the frames they have, and a replay of pairs about short videos, which is named on the
command line; then the mean of the result and the model it started from:

  --config=configs/longva_tpo.py:robust --config.data.replay="('SHORT',)" \
  --config.data.replay_weights=3,1
  python -m tpo_jax.average --models=LongVA-7B,DIR/model --shares=0.3,0.7 --output=averaged

What it gives at miniature size is in `docs/results/quickstart.md`. Not run at 7B yet: no score to
report, and neither rate, epochs nor shares are known to carry over. At miniature size few pairs are
about what the base answers with all frames as well, and none about what comes before and after;
curation does not leave such pairs out yet.
"""

from ml_collections import ConfigDict

from tpo_jax.study.rows import apply_variant
from tpo_jax.training.experiment import base


def get_config(variant: str = "tpo") -> ConfigDict:
    """Return the experiment, or one of its variants."""
    config = base()
    config.data.num_frames = 32
    config.objective.beta = 0.3
    config.objective.alpha = 0.5
    config.train.learning_rate = 4e-6
    return apply_variant(config, variant)
