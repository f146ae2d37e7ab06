"""The paper's run on the TPUs of Kaggle and Colab: one recipe per model, machine and length.

python -m tpo_jax.train --config=configs/free_tpus.py:kaggle_llava_video_full_32 --workdir=DIR \
  --config.model.checkpoint=LLaVA-Video-7B-Qwen2 --config.data.shards=SHARDS

Variants: the names in `RECIPES`. None has been run yet, so there is no score to report. What is
kept for the backward pass was chosen by the formulas of `plan --search=fastest`, with 2 to 4 GiB
left for working memory; ask `plan` whether a recipe fits before you start it:

python -m tpo_jax.plan --config=configs/free_tpus.py:kaggle_llava_video_full_32 \
  --config.model.preset=llava_video_7b --topology=v5e:2x4

Full fine-tuning has the paper's settings (`longva_tpo.py`, `llava_video_tpo.py`) with 8 pairs a
step. The learning rate of adapters is ten times that of the weights, as is usual for LoRA.
"""

from ml_collections import ConfigDict

from tpo_jax.training.experiment import base

KAGGLE, COLAB, COLAB_V6E = "v5e:2x4", "v5e:1x1", "v6e:1x1"  # topologies for `plan`
ONEVISION, VIDEO, LONG = "llava_onevision_0.5b", "llava_video_7b", "longva_7b"  # sizes

LONGVA_TPO = {"objective.beta": 0.3, "objective.alpha": 0.5, "train.learning_rate": 4e-6}
VIDEO_TPO = {"objective.beta": 0.2, "objective.alpha": 1.0, "train.learning_rate": 3e-7}
LONGVA_LORA = LONGVA_TPO | {"train.learning_rate": 4e-5, "lora.rank": 16}
VIDEO_LORA = VIDEO_TPO | {"train.learning_rate": 3e-6, "lora.rank": 16}

# One row at a time: what a chip of 16 GB has room for. The gradients of 8 are added up.
ONE_BY_ONE = {"compute.micro_batches": 8}
INT8 = {"model.weights": "int8"}
BF16 = {"train.moments": "bfloat16"}
# What the backward pass need not recompute, as far as memory allows.
ATTENTION = {"compute.remat": "attention:save"}
STREAMS = {"compute.remat": "attention:save,residual:save"}
ALL_BUT_MLP = {"compute.remat": "qkv:save,attention:save,residual:save"}
ALL = {"compute.remat": "qkv:save,attention:save,residual:save,mlp:save"}

# By name: sizes, machine, frames, and the fields that differ from `base()`.
RECIPES = {
    "kaggle_llava_video_full_32": (VIDEO, KAGGLE, 32, VIDEO_TPO | BF16 | ATTENTION),
    "kaggle_llava_video_lora_64": (VIDEO, KAGGLE, 64, VIDEO_LORA | ATTENTION),
    "kaggle_llava_video_lora_96": (VIDEO, KAGGLE, 96, VIDEO_LORA | ATTENTION),
    "kaggle_longva_lora_128": (LONG, KAGGLE, 128, LONGVA_LORA | ATTENTION),
    "colab_onevision_full_32": (ONEVISION, COLAB, 32, VIDEO_TPO | ONE_BY_ONE | ALL),
    "colab_onevision_full_64": (ONEVISION, COLAB, 64, VIDEO_TPO | ONE_BY_ONE | ALL_BUT_MLP),
    "colab_onevision_lora_32": (ONEVISION, COLAB, 32, VIDEO_LORA | ONE_BY_ONE | ALL),
    "colab_onevision_lora_64": (ONEVISION, COLAB, 64, VIDEO_LORA | ONE_BY_ONE | ALL),
    "colab_longva_lora_16": (LONG, COLAB, 16, LONGVA_LORA | ONE_BY_ONE | INT8 | STREAMS),
    "colab_longva_lora_32": (LONG, COLAB, 32, LONGVA_LORA | ONE_BY_ONE | INT8 | ATTENTION),
    "colab_llava_video_lora_16": (VIDEO, COLAB, 16, VIDEO_LORA | ONE_BY_ONE | INT8 | ATTENTION),
    "colab_llava_video_lora_32": (VIDEO, COLAB, 32, VIDEO_LORA | ONE_BY_ONE | INT8),
    "colab_v6e_longva_lora_32": (LONG, COLAB_V6E, 32, LONGVA_LORA | ONE_BY_ONE | ALL_BUT_MLP),
    "colab_v6e_llava_video_lora_32": (VIDEO, COLAB_V6E, 32, VIDEO_LORA | ONE_BY_ONE | ALL_BUT_MLP),
}


def get_config(variant: str = "kaggle_llava_video_full_32") -> ConfigDict:
    """Return a recipe.

    Raises:
        ValueError: no such recipe.
    """
    if variant not in RECIPES:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(RECIPES)}")
    config = base()
    config.train.batch_size = 8
    _, _, config.data.num_frames, changes = RECIPES[variant]
    config.update_from_flattened_dict(changes)
    return config
