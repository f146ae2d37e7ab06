"""LoRA adapters, and what trained beside them, as a directory that `peft` loads onto the Hugging
Face model.
"""

import re
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import flatten, weights
from tpo_jax.families.weights import to_torch
from tpo_jax.io.files import replacing_directory, write_json
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.lora import Lora, adapters_of


def save_adapters(
    directory: Path, model: ModelConfig, lora: Lora, trained: dict, base: str
) -> None:
    """Write everything that was trained; all processes must call this together.

    `adapter_model.safetensors` holds the adapters and a trained projector, which
    `adapter_config.json` names in `modules_to_save`: `peft` loads both. Other trained parameters
    (the newline vector, which is no module, and a tower) go to `non_lora_trainables.safetensors`
    under their Hugging Face names, to be loaded into the base model; the file is absent where there
    are none. Base and directory together are the trained model.

    Args:
        directory: where to; one that exists is replaced.
        trained: adapters and the other parameters that were trained, and nothing frozen.
        base: what the adapters go onto, for the record.
    """
    tensors, others = _tensors(model, trained)
    if jax.process_index():
        return
    first = weights(model).leaves["decoder/layers/q/kernel"].names[0]
    layers = re.escape(first[: first.index("0.")])
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
        "target_modules": rf"{layers}\d+\.(self_attn|mlp)\.({'|'.join(lora.targets)})",
        "modules_to_save": [families.of(model).connector] if "projector" in trained else None,
    }
    with replacing_directory(directory) as temporary:
        write_json(temporary / "adapter_config.json", values)
        save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        if others:
            save_file(others, temporary / "non_lora_trainables.safetensors", {"format": "pt"})


def _tensors(
    model: ModelConfig, trained: dict
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what `peft` loads, and the others, by name; all processes must call this together."""
    rows = weights(model).leaves
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, np.ndarray] = {}

    def whole(leaf: jax.Array) -> np.ndarray:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    for projection, part in adapters_of(trained).items():
        names = rows[f"decoder/layers/{projection}/kernel"].names
        for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            for name, values in zip(names, whole(part[leaf]), strict=True):
                name = name.removesuffix("weight") + f"{theirs}.weight"
                tensors[f"base_model.model.{name}"] = np.ascontiguousarray(values.T)
    for path, leaf in flatten(trained).items():
        if path in rows:
            names = rows[path].names
            parts = to_torch(rows[path], whole(leaf))
            for name, values in zip(names, map(np.ascontiguousarray, parts), strict=True):
                if path.startswith("projector/"):
                    tensors[f"base_model.model.{name}"] = values
                else:
                    others[name] = values
    return tensors, others
