"""A small model that the TPU compiler treats like a large one, and an experiment on it."""

import dataclasses

from tpo_jax import families
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.models.config import DecoderConfig
from tpo_jax.training.experiment import base

# The widths that decide what the compiler does with a layer; two layers and a small tower.
SLICE = dataclasses.replace(
    families.preset("longva_7b"),
    tower=TowerConfig("clip", 112, 14, width=128, layers=2, heads=2, mlp_width=256),
    decoder=DecoderConfig(
        vocab_size=1024,
        width=512,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=128,
        mlp_width=1024,
        rope_theta=1e6,
    ),
)


def experiment(**changes):
    config = base()
    config.model.preset = "longva_7b"
    config.train.batch_size = 4
    config.data.num_frames = 60
    config.data.max_prefix = 1536
    config.data.max_response = 128
    config.update_from_flattened_dict(
        {"mesh.fsdp": 4, "mesh.context": 2, **{k.replace("__", "."): v for k, v in changes.items()}}
    )
    return config
