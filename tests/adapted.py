"""A model as a base and LoRA adapters beside it, for the commands that take both."""

from pathlib import Path

import jax
import numpy as np

from tests.random_params import random_params
from tpo_jax.checkpoints.models import save_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.lora import Lora, init_adapters, join, merge

LORA = Lora(rank=2, alpha=8.0)


def save_adapted(
    config: ModelConfig, seed: int, tokenizer: Path, *, base: Path, adapters: Path, merged: Path
) -> None:
    """Write a random model, random adapters for it in PEFT's layout, and the model of both."""
    params = jax.device_put(random_params(config, seed))
    draws = np.random.default_rng(seed)
    beside = jax.tree.map(
        lambda x: np.float32(0.1) * draws.standard_normal(x.shape, np.float32),
        jax.eval_shape(lambda: init_adapters(LORA, params, seed)),
    )
    save_model(base, config, params, tokenizer)
    save_adapters(adapters, config, LORA, beside, str(base))
    save_model(merged, config, merge(join(params, beside), LORA), tokenizer)
