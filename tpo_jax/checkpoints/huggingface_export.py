"""Hugging Face checkpoints written, and what a native directory keeps of one to give it back.

Import then export gives the same tensors, byte by byte, under the same names and in the same files.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from tpo_jax.checkpoints.huggingface import Leaf, check_tensors, expected_shapes, flatten, table
from tpo_jax.checkpoints.safetensors_files import DTYPES, INDEX, Entry, SafetensorsWriter, Shards
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen import published as hf_config
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.io.files import read_json_object, write_json
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
            "metadata": shards.metadata[file],
            "tensors": {name: shards.dtype(name) for name in names},
        }
        for file, names in shards.files.items()
    }
    write_json(target / "layout.json", layout)
    save_file({name: shards.read(name) for name in unused}, target / "unused.safetensors")


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copies those of the named files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def copy_tower_config(source: Path, target: Path) -> None:
    """Copies the config of the folder `mm_vision_tower` names, if it names one of the directory."""
    folder = hf_config.tower_folder(source, read_json_object(source / "config.json"))
    if folder:
        copy = target / folder.relative_to(source.resolve())
        copy.mkdir(parents=True, exist_ok=True)
        copy_files(folder, copy, ("config.json", "preprocessor_config.json"))


def to_torch(leaf: Leaf, values: np.ndarray, tower: TowerConfig) -> Iterator[np.ndarray]:
    """The tensors of a parameter, one for each of `leaf.names`."""
    for part in values if leaf.stacked else (values,):
        if leaf.kind == "patch":
            p = tower.patch_size
            part = part.reshape(p, p, 3, tower.width).transpose(3, 2, 0, 1)
        yield part.T if leaf.kind == "transposed" else part


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


def _dtypes(
    leaf: Leaf, parameter, recorded: dict[str, str | None], forced: str | None
) -> dict[str, str]:
    """Dtype of every tensor of a parameter: the forced one, or else the recorded one if that loses
    nothing. The values are read only where that depends on them.
    """
    own = _name(parameter.dtype)
    if forced:
        return dict.fromkeys(leaf.names, _name(jnp.dtype(forced)))
    if all(recorded[name] in (own, None) for name in leaf.names):
        return dict.fromkeys(leaf.names, own)
    dtypes = dict.fromkeys(leaf.names, own)
    values = np.asarray(parameter)
    for name, part in zip(leaf.names, values if leaf.stacked else (values,), strict=True):
        cast = part.astype(DTYPES.get(recorded[name] or "", part.dtype))
        if np.array_equal(cast.astype(part.dtype), part):
            dtypes[name] = _name(cast.dtype)
    return dtypes


def _entry(dtype: str, shape: tuple[int, ...]) -> Entry:
    return Entry(dtype, shape, DTYPES[dtype].itemsize)


def _name(dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def export_model(
    directory: Path, config: Any, params: dict, kept: Path | None, dtype: str | None = None
) -> None:
    """Writes a Hugging Face checkpoint, one parameter in memory at a time.

    Args:
        directory: where to; exists and is empty.
        config: of the model.
        params: as `families.abstract_params(config)`, addressable from this process or `Stored`.
        kept: what `keep` wrote; None: the model did not come from a checkpoint, and names, files
            and `config.json` are made up as the originals would.
        dtype: of every tensor; None: the checkpoint's where that loses nothing, else the params'.

    Raises:
        InputError: what was kept does not go together.
    """
    if kept:
        layout = read_json_object(kept / "layout.json")
        text = (kept / "config.json").read_text(encoding="utf-8")
        updated = hf_config.update_settings(json.loads(text), config)
        copy_tower_config(kept, directory)
        (directory / "config.json").write_text(text, encoding="utf-8")
        if updated != json.loads(text):
            write_json(directory / "config.json", updated)
    else:
        stored = jnp.dtype(dtype or flatten(params)["decoder/embed/embedding"].dtype)
        layout = _new_layout(config, stored.itemsize)
        name = hf_config.known_tower(config.tower)
        values = hf_config.new_values(config, name or "vision_tower", stored.name)
        write_json(directory / "config.json", values)
        if not name:
            (directory / "vision_tower").mkdir()
            own = hf_config.tower_values(config.tower)
            write_json(directory / "vision_tower" / "config.json", own)

    expected, rows, leaves = expected_shapes(config), table(config), flatten(params)
    recorded = {name: t for file in layout.values() for name, t in file["tensors"].items()}
    if missing := expected.keys() - recorded.keys():
        raise InputError(f"{kept}/layout.json: tensor {min(missing)} has no file")
    dtypes: dict[str, str] = {}
    for path, leaf in rows.items():
        dtypes |= _dtypes(leaf, leaves[path], recorded, dtype)
    entries = {name: _entry(dtypes[name], expected[name]) for name in dtypes}

    others = load_file(kept / "unused.safetensors") if kept else {}
    for name in recorded.keys() - dtypes.keys():
        if name not in others and name not in expected:
            raise InputError(f"{kept}: tensor {name} is in layout.json and nowhere else")
        if name not in others:
            # No output depends on it, but the original modules own it and strict loaders want it.
            others[name] = np.zeros(expected[name], leaves["tower/position"].dtype)
        tensor, code = others[name], recorded[name]
        if tensor.dtype in DTYPES.values():
            others[name] = tensor = tensor.astype(dtype or tensor.dtype)
            code = _name(tensor.dtype)
        entries[name] = Entry(str(code), tensor.shape, tensor.itemsize)

    writers: dict[str, SafetensorsWriter] = {}
    weight_map: dict[str, str] = {}
    for file, content in layout.items():
        if Path(file).name != file:
            raise InputError(f"{kept}/layout.json: {file!r} is not the name of a file")
        inside = {name: entries[name] for name in content["tensors"]}
        writer = SafetensorsWriter(directory / file, inside, content["metadata"])
        writers |= dict.fromkeys(inside, writer)
        weight_map |= dict.fromkeys(inside, file)
    for name, tensor in others.items():
        writers[name].write(name, tensor)

    def write(leaf, values):
        for name, part in zip(leaf.names, to_torch(leaf, values, config.tower), strict=True):
            writers[name].write(name, part.astype(DTYPES[dtypes[name]], copy=False))

    for path, leaf in rows.items():
        write(leaf, np.asarray(leaves[path]))
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(directory / INDEX, index)
