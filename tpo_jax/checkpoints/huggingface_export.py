"""Export of published checkpoints, and what a native directory keeps of one for that.

Import then export gives the same tensors, byte by byte, under the same names and in the same files.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import check_tensors, flatten, weights
from tpo_jax.checkpoints.safetensors_files import (
    DTYPES,
    INDEX,
    Entry,
    SafetensorsWriter,
    TensorFiles,
)
from tpo_jax.errors import InputError, note
from tpo_jax.families.weights import Leaf, Weights, to_torch
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
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_SHARD_BYTES = 5 * 10**9


def keep(shards: TensorFiles, target: Path, config: ModelConfig) -> None:
    """Store what an export needs beyond the parameters to give a checkpoint back byte by byte.

    That is `config.json`, the config files of its parts, `layout.json` (which tensor lies in which
    file, under which name and in which dtype) and `unused.safetensors` with the weights no output
    depends on.
    """
    source, unused = shards.directory, check_tensors(shards, config)
    target.mkdir(parents=True)
    parts = families.of(config).config_files(source)
    copy_files(source, target, ["config.json", *parts])
    read = {folder.resolve() for folder in shards.directories}
    for folder in {(source / file.parent).resolve() for file in parts} - read:
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
            note(f"{folder}: its config is kept; its weights, which the model does not use, not")
    layout = {
        file: {
            "metadata": shards.metadata[file],
            "tensors": {shards.stored(name): shards.dtype(name) for name in names},
        }
        for file, names in shards.files.items()
        if names
    }
    write_json(target / "layout.json", layout)
    save_file({name: shards.read(name) for name in unused}, target / "unused.safetensors")


def copy_files(source: Path, target: Path, names: Iterable[str | Path]) -> None:
    """Copy those of the named files that exist."""
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _new_files(
    tensors: dict[str, tuple[int, ...]], itemsize: int, spelling: Callable[[str], str]
) -> dict:
    """Return files of at most `_SHARD_BYTES`, tensors in the order of the table."""
    files: list[dict] = []
    size = _SHARD_BYTES
    for name, shape in tensors.items():
        tensor = int(np.prod(shape)) * itemsize
        if size + tensor > _SHARD_BYTES:
            files.append({})
            size = 0
        files[-1][spelling(name)] = None
        size += tensor
    return {
        f"model-{i:05}-of-{len(files):05}.safetensors": {
            "metadata": {"format": "pt"},
            "tensors": tensors,
        }
        for i, tensors in enumerate(files, 1)
    }


def _dtypes(
    leaf: Leaf, parameter: Any, recorded: dict[str, str | None], forced: str | None
) -> dict[str, str]:
    """Return the dtype of every tensor of a parameter: the forced one, or else the recorded one if
    that loses nothing. The values are read only where that depends on them.
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


def _name(dtype: np.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def export_model(
    directory: Path,
    config: ModelConfig,
    params: dict,
    kept: Path | None,
    dtype: str | None = None,
    layout: str = "",
) -> None:
    """Write a published checkpoint, one parameter in memory at a time.

    Args:
        directory: where to; exists, and may hold `SIDE_FILES`, which `Family.updated_files` reads.
        params: as `families.abstract_params(config)`, addressable from this process or `Stored`.
        kept: what `keep` wrote; None: the model did not come from a checkpoint, and names, files
            and `config.json` are made as the originals have them.
        dtype: of every tensor; None: the checkpoint's where that loses nothing, else the params'.
        layout: of `Family.layouts`; empty: that of what was kept, else the first. In another layout
            than that of what was kept, names, files and `config.json` are made anew, too.

    Raises:
        InputError: what was kept is inconsistent, or the layout cannot hold the model.
    """
    family, table, leaves = families.of(config), weights(config), flatten(params)
    stored = jnp.dtype(dtype or leaves["decoder/embed/embedding"].dtype)
    files = _write_configs(directory, config, kept, stored, layout)
    stored_names = {family.canonical(n): n for file in files.values() for n in file["tensors"]}
    recorded = {
        family.canonical(name): t for file in files.values() for name, t in file["tensors"].items()
    }
    if missing := table.tensors.keys() - recorded.keys():
        raise InputError(f"{kept}/layout.json: tensor {min(missing)} has no file")

    copies = {name: twin for name, twin in table.copies.items() if name in recorded}
    dtypes: dict[str, str] = {}
    for path, leaf in table.leaves.items():
        dtypes |= _dtypes(leaf, leaves[path], recorded, dtype)
    entries = {name: _entry(dtypes[name], table.tensors[name]) for name in dtypes}
    entries |= {name: entries[twin] for name, twin in copies.items()}
    others = _others(kept, table, leaves, recorded.keys() - entries.keys())
    for name, tensor in others.items():
        code = recorded[name]
        if tensor.dtype in DTYPES.values():
            others[name] = tensor = tensor.astype(dtype or tensor.dtype)
            code = _name(tensor.dtype)
        entries[name] = Entry(str(code), tensor.shape, tensor.itemsize)

    writers = _open_files(
        directory, files, {stored_names[name]: entry for name, entry in entries.items()}, kept
    )

    def write(name: str, tensor: np.ndarray) -> None:
        for twin in (name, *(copy for copy, original in copies.items() if original == name)):
            writers[stored_names[twin]].write(stored_names[twin], tensor)

    for name, tensor in others.items():
        write(name, tensor)
    for path, leaf in table.leaves.items():
        for name, part in zip(leaf.names, to_torch(leaf, np.asarray(leaves[path])), strict=True):
            write(name, part.astype(DTYPES[dtypes[name]], copy=False))


def _write_configs(
    directory: Path, config: ModelConfig, kept: Path | None, dtype: np.dtype, layout: str
) -> dict:
    """Write `config.json` and what lies beside it, the same bytes where nothing changed; return
    which tensor goes into which file.
    """
    family = families.of(config)
    if layout and layout not in family.layouts:
        known = ", ".join(family.layouts)
        raise InputError(f"--layout={layout}: checkpoints of this model have only {known}")
    if kept:
        values = json.loads((kept / "config.json").read_text(encoding="utf-8"))
        if layout in ("", family.layout_of(values)):
            copy_files(kept, directory, ["config.json", *family.config_files(kept)])
            if (updated := family.update_config(values, config)) != values:
                write_json(directory / "config.json", updated)
            for file, values in family.updated_files(directory, config).items():
                write_json(directory / file, values)
            return read_json_object(kept / "layout.json")
    made = family.layouts[layout or next(iter(family.layouts))]
    for file, values in made.new_config(config, dtype.name).items():
        (directory / file).parent.mkdir(exist_ok=True)
        write_json(directory / file, values)
    return _new_files(weights(config).tensors, dtype.itemsize, made.spelling)


def _others(
    kept: Path | None, table: Weights, leaves: dict[str, Any], names: Collection[str]
) -> dict[str, np.ndarray]:
    """Return the tensors without a parameter: those that were kept, zeros for the others.

    No output depends on them, but the original modules own them and strict loaders want them.
    """
    found = load_file(kept / "unused.safetensors") if kept else {}
    others = {name: tensor for name, tensor in found.items() if name in names}
    for name in names:
        if name in others:
            continue
        if name not in table.tensors:
            raise InputError(f"{kept}: tensor {name} is in layout.json and nowhere else")

        def alike(path: str, name: str = name) -> int:
            return len(os.path.commonprefix([name, table.leaves[path].names[0]]))

        neighbour = max(table.leaves, key=alike)  # a tensor of the same module
        others[name] = np.zeros(table.tensors[name], leaves[neighbour].dtype)
    return others


def _open_files(
    directory: Path, files: dict, entries: dict[str, Entry], kept: Path | None
) -> dict[str, SafetensorsWriter]:
    """Create the files and their index; return the writer of every tensor, by its stored name."""
    writers: dict[str, SafetensorsWriter] = {}
    weight_map: dict[str, str] = {}
    for file, content in files.items():
        if Path(file).name != file:
            raise InputError(f"{kept}/layout.json: {file!r} is not the name of a file")
        inside = {name: entries[name] for name in content["tensors"]}
        writer = SafetensorsWriter(directory / file, inside, content["metadata"])
        writers |= dict.fromkeys(inside, writer)
        weight_map |= dict.fromkeys(inside, file)
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(directory / INDEX, index)
    return writers
