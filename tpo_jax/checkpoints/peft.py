"""LoRA adapters as a directory that `peft` loads onto the Hugging Face model."""

import shutil
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from tpo_jax.checkpoints.huggingface import table
from tpo_jax.checkpoints.huggingface_config import write_json
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.lora import Lora, adapters_of


def save_adapters(directory: Path, model: ModelConfig, lora: Lora, params: dict, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`; every process calls it.

    Args:
        directory: where to; one that exists is replaced.
        model: the adapted model.
        lora: rank, alpha and targets.
        params: hold the adapters; others are left alone.
        base: what the adapters go onto, for the record.
    """
    rows, tensors = table(model), {}
    for projection, part in adapters_of(params).items():
        names = rows[f"decoder/layers/{projection}/kernel"].names
        for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            stack = np.asarray(multihost_utils.process_allgather(part[leaf], tiled=True))
            for name, values in zip(names, stack, strict=True):
                name = name.removesuffix("weight") + f"{theirs}.weight"
                tensors[f"base_model.model.{name}"] = np.ascontiguousarray(values.T)
    if jax.process_index():
        return
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # A list of names would match the vision tower's projections, too.
        "target_modules": rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(lora.targets)})",
    }
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_json(temporary / "adapter_config.json", values)
    save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)
