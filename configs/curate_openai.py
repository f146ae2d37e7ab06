"""The paper's division of work (arXiv 2501.13919, appendix F): the model that is to be trained
answers, an endpoint with an OpenAI-compatible interface captions, asks and judges, the latter two
from text alone.

python -m tpo_jax.curate --config=configs/curate_openai.py --workdir=DIR \
  --config.videos.folder=VIDEOS --config.local.checkpoint=LongVA-7B \
  --config.openai.url=https://HOST/v1 --config.openai.model=MODEL --max_cost=50 \
  --config.openai.price_in=0.15 --config.openai.price_out=0.60

The key is read from the environment, `OPENAI_API_KEY`. Not run at 7B yet: no yield to report.
"""

from ml_collections import ConfigDict

from tpo_jax.curation.config import base


def get_config() -> ConfigDict:
    """Return the config."""
    config = base()
    for name in ("captioner", "questioner", "judge"):
        config[name].backend = "openai"
    config.questioner.num_frames = 0
    config.judge.num_frames = 0
    return config
