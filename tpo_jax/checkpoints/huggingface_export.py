"""Hugging Face checkpoints written, and what a native directory keeps of one to give it back.

Import then export gives the same tensors, byte by byte, under the same names and in the same files.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from tpo_jax.checkpoints import huggingface_config as hf_config
from tpo_jax.checkpoints.huggingface import (
    DTYPES,
    INDEX,
    Shards,
    check_tensors,
    expected_shapes,
    flatten,
    table,
)
from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)
_SHARD_BYTES = 5 * 10**9


def keep(source: Path, target: Path, config: ModelConfig) -> None:
    """Stores what an export needs beyond the parameters to give `source` back byte by byte.

    That is `config.json`, the tower's own, `layout.json` (which tensor lies in which file, in which
    dtype) and `unused.safetensors` with the weights no output depends on.
    """
    shards = Shards(source)
    unused = check_tensors(shards, config)
    target.mkdir(parents=True)
    copy_files(source, target, ("config.json",))
    copy_tower_config(source, target)
    layout = {
        file: {
            "metadata": shards.metadata(file),
            "tensors": {name: shards.dtype(name) for name in names},
        }
        for file, names in shards.files.items()
    }
    hf_config.write_json(target / "layout.json", layout)
    save_file({name: shards.read(name) for name in unused}, target / "unused.safetensors")


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copies those of the named files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def copy_tower_config(source: Path, target: Path) -> None:
    """Copies the config of the folder `mm_vision_tower` names, if it names one of the directory."""
    folder = hf_config.tower_folder(source, json.loads((source / "config.json").read_text()))
    if folder:
        copy = target / folder.relative_to(source.resolve())
        copy.mkdir(parents=True, exist_ok=True)
        copy_files(folder, copy, ("config.json", "preprocessor_config.json"))


def tensor_reader(config: ModelConfig, params: dict, kept: Path | None) -> Callable:
    """A function from a PyTorch name to the tensor, in the dtype of the parameter."""
    leaves, tower = flatten(params), config.tower
    place = {
        name: (path, layer, leaf)
        for path, leaf in table(config).items()
        for layer, name in enumerate(leaf.names)
    }
    unused = safetensors.safe_open(kept / "unused.safetensors", "numpy") if kept else None
    expected = expected_shapes(config)

    def read(name):
        if name in place:
            path, layer, leaf = place[name]
            values = np.asarray(leaves[path])
            values = values[layer] if leaf.stacked else values
            if leaf.kind == "patch":
                p = tower.patch_size
                values = values.reshape(p, p, 3, tower.width).transpose(3, 2, 0, 1)
            return values.T if leaf.kind == "transposed" else values
        if unused and name in unused.keys():  # noqa: SIM118, not a mapping
            return unused.get_tensor(name)
        if name in expected:
            # No output depends on it, but the original modules own it and strict loaders want it.
            return np.zeros(expected[name], leaves["tower/position"].dtype)
        raise InputError(f"{kept}: tensor {name} is in layout.json and nowhere else")

    return read


def _new_layout(config: ModelConfig, itemsize: int) -> dict:
    """Files of at most `_SHARD_BYTES`, tensors in the order of the table."""
    files: list[dict] = []
    size = _SHARD_BYTES
    for name, shape in expected_shapes(config).items():
        tensor = int(np.prod(shape)) * itemsize
        if size + tensor > _SHARD_BYTES:
            files.append({})
            size = 0
        files[-1][name] = None
        size += tensor
    return {
        f"model-{i:05}-of-{len(files):05}.safetensors": {
            "metadata": {"format": "pt"},
            "tensors": tensors,
        }
        for i, tensors in enumerate(files, 1)
    }


def _in_dtype(values: np.ndarray, recorded: str | None, forced: str | None) -> np.ndarray:
    """In the forced dtype, or else in the recorded one if that loses nothing."""
    if values.dtype not in DTYPES.values():
        return values
    if forced:
        values = values.astype(forced)
    elif recorded and recorded in DTYPES:
        cast = values.astype(DTYPES[recorded])
        values = cast if np.array_equal(cast.astype(values.dtype), values) else values
    return np.ascontiguousarray(values)  # save_file writes the buffer, whatever the strides


def export_model(
    directory: Path, config: ModelConfig, params: dict, kept: Path | None, dtype: str | None = None
) -> None:
    """Writes a Hugging Face checkpoint, one file in memory at a time.

    Args:
        directory: where to; exists and is empty.
        config: of the model.
        params: as `vlm.abstract_params(config)`, addressable from this process.
        kept: what `keep` wrote; None: the model did not come from a checkpoint, and names, files
            and `config.json` are made up as the originals would.
        dtype: of every tensor; None: the checkpoint's where that loses nothing, else the params'.

    Raises:
        InputError: what was kept does not go together.
    """
    if kept:
        layout = hf_config.read_json(kept / "layout.json")
        text = (kept / "config.json").read_text(encoding="utf-8")
        updated = hf_config.update_settings(json.loads(text), config)
        copy_tower_config(kept, directory)
        (directory / "config.json").write_text(text, encoding="utf-8")
        if updated != json.loads(text):
            hf_config.write_json(directory / "config.json", updated)
    else:
        stored = jnp.dtype(dtype or flatten(params)["decoder/embed/embedding"].dtype)
        layout = _new_layout(config, stored.itemsize)
        name = hf_config.known_tower(config.tower)
        values = hf_config.new_values(config, name or "vision_tower", stored.name)
        hf_config.write_json(directory / "config.json", values)
        if not name:
            (directory / "vision_tower").mkdir()
            own = hf_config.tower_values(config.tower)
            hf_config.write_json(directory / "vision_tower" / "config.json", own)

    read = tensor_reader(config, params, kept)
    total = 0
    weight_map: dict[str, str] = {}
    for file, content in layout.items():
        tensors = {
            name: _in_dtype(read(name), recorded, dtype)
            for name, recorded in content["tensors"].items()
        }
        save_file(tensors, directory / file, metadata=content["metadata"])
        total += sum(values.nbytes for values in tensors.values())
        weight_map |= dict.fromkeys(tensors, file)
    missing = expected_shapes(config).keys() - weight_map.keys()
    if missing:
        raise InputError(f"{kept}/layout.json: tensor {min(missing)} has no file")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    hf_config.write_json(directory / INDEX, index)
