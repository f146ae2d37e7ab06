"""Model directories: the native layout written and read, either layout loaded.

A native directory holds `config.json` (`{"format": "tpo_jax", "version": 1, "model": {...}}`), the
tokenizer's files, `params/` written by Orbax, and, where the model came from a Hugging Face
checkpoint, `huggingface/` with what an export needs to give that back (see
`huggingface_export.keep`).
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from tpo_jax import families
from tpo_jax.checkpoints import hub, huggingface, native
from tpo_jax.checkpoints import huggingface_export as export
from tpo_jax.checkpoints.adapters import read_adapters
from tpo_jax.checkpoints.huggingface import flatten
from tpo_jax.checkpoints.native import nested
from tpo_jax.checkpoints.safetensors_files import TensorFiles
from tpo_jax.errors import InputError, note
from tpo_jax.families.family import Family
from tpo_jax.families.values import check_settings, settings_of
from tpo_jax.io.files import read_json_object, replacing_directory, write_json
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.quantized import is_quantized, quantize_leaf
from tpo_jax.parallel.sharding import parameter_shardings

FORMAT, VERSION = "tpo_jax", 1
KEPT = "huggingface"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model directory's contents.

    `params` is the nested dict of `families.abstract_params(config)`, arrays from `load_model` and
    `huggingface.Stored` from `open_model`; `tokenizer_directory` is where the tokenizer's files lie
    and what `save_model` takes as `tokenizer`.
    """

    config: ModelConfig
    params: dict
    tokenizer_directory: Path


@dataclasses.dataclass(frozen=True)
class Stream:
    """A model that is loaded parameter by parameter: `leaves` yields path and values."""

    config: ModelConfig
    leaves: Iterator[tuple[str, jax.Array]]
    tokenizer_directory: Path


def is_native(directory: str | Path) -> bool:
    """Return whether a model directory is native; false: Hugging Face layout.

    Raises:
        InputError: neither, or `config.json` is missing or unreadable.
    """
    directory = Path(directory).absolute()
    values = _config_of(directory)
    if values.get("format") == FORMAT:
        if values.get("version") != VERSION:
            raise InputError(
                f"{directory}/config.json: version {values.get('version')!r} of the native format "
                f"is unknown; this program reads version {VERSION}"
            )
        return True
    _published_family(directory, values)
    return False


def _published_family(directory: Path, values: dict) -> Family:
    """Return the family of a published checkpoint, given its `config.json`; InputError: none."""
    if family := families.recognise(values):
        return family
    architectures = values.get("architectures")
    if family := families.recognise(values, _names(directory)):
        note(
            f"{directory}/config.json: architectures is {architectures!r}; by its tensors it is "
            f"taken for one of {family.reads}, in the layout {family.layout_of(values)!r}"
        )
        return family
    known = ", ".join(family.reads for family in families.FAMILIES.values())
    raise InputError(
        f"{directory}/config.json: architectures is {architectures!r}; only {known} and native "
        f"directories can be read{_inside(directory)}"
    )


def _config_of(directory: Path) -> dict[str, Any]:
    """Return what `config.json` of a model directory holds; InputError: it cannot be read."""
    if directory.is_file():
        raise InputError(f"{directory}: a file, not a model directory")
    if directory.is_dir() and not (directory / "config.json").exists():
        raise InputError(f"{directory}/config.json does not exist{_inside(directory)}")
    return read_json_object(directory / "config.json")


def _inside(directory: Path) -> str:
    """Return a hint at the model inside, if this is the directory of a run; else ""."""
    model = directory / "model"
    return f"; did you mean {model}?" if (model / "config.json").is_file() else ""


def load_config(
    directory: str | Path, tower: str | Path | None = None, **settings: Any
) -> ModelConfig:
    """Read the config of a model directory of either layout; no weights are read.

    Args:
        tower: folder of the vision tower, for a Hugging Face checkpoint that holds none or names
            one that cannot be told from its tensors.
        **settings: what to use in place of what the directory says, such as `max_length` or
            `rope_theta`; `Family.settings` lists them.

    Raises:
        InputError: what is wrong with the directory or a setting.
    """
    directory = hub.folder(directory).absolute()  # for notes, each of which is printed once
    values = _config_of(directory)
    if not is_native(directory):
        family = _published_family(directory, values)
        check_settings(family.reads, family.settings, settings)
        shapes = TensorFiles(directory, family.canonical).shapes()
        config: ModelConfig = family.read_config(directory, shapes, settings | _tower(tower))
    else:
        _no_tower(directory, tower)
        try:
            family, model = families.named(values.get("family")), values["model"]
            check_settings(family.reads, family.settings, settings)
            if "rope_theta" in settings:
                model["decoder"]["rope_theta"] = settings.pop("rope_theta")
            config = family.from_dict({**model, **settings})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{directory}/config.json: {error}") from error
    family.check_files(directory)
    return config


def load_model(
    directory: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: jax.typing.DTypeLike | None = jnp.float32,
    tower: str | Path | None = None,
    adapters: str | Path | None = None,
    weights: str = "",
    **settings: Any,
) -> Loaded:
    """Load a model from a native or Hugging Face directory.

    Parameters are loaded one by one: beside the result, memory holds at most two of the largest.

    Args:
        mesh: every array arrives laid out by `parallel.sharding.parameter_shardings`, and a host
            reads its own slices only; None: on the first device.
        dtype: of the parameters that are not quantized; None: as stored.
        tower: see `load_config`.
        adapters: PEFT's directory of adapters, merged into the weights.
        weights: `int8` or `int4` to quantize the decoder's kernels as `models.quantized` says, from
            the stored dtype; empty: not.
        **settings: see `load_config`.

    Raises:
        InputError: what is wrong with a directory, in one line.
    """

    def dtype_of(path: str) -> jax.typing.DTypeLike | None:
        return None if is_quantized(path, weights) else dtype

    loaded = stream_model(
        directory, mesh=mesh, dtype=dtype_of, tower=tower, adapters=adapters, **settings
    )
    params: dict[str, jax.Array] = {}
    for path, x in loaded.leaves:
        params |= quantize_leaf(path, x, weights) if is_quantized(path, weights) else {path: x}
        del x  # before the next is read
    return Loaded(loaded.config, nested(params), loaded.tokenizer_directory)


def stream_model(
    directory: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Callable[[str], Any] = lambda path: None,
    tower: str | Path | None = None,
    adapters: str | Path | None = None,
    **settings: Any,
) -> Stream:
    """Load a model parameter by parameter, as the caller takes them; see `load_model`.

    Args:
        dtype: of a parameter, by its path.
    """
    directory = hub.folder(directory).absolute()
    config = load_config(directory, tower, **settings)
    changes = read_adapters(adapters, config) if adapters else None
    abstract = families.abstract_params(config)
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, abstract)
    else:
        shardings = parameter_shardings(mesh, abstract)
    if is_native(directory):
        leaves = native.read_params(directory / "params", config, shardings, dtype)
    else:
        stored = huggingface.open_params(_open(directory, config, tower), config, dtype)
        where = flatten(shardings)
        leaves = ((p, huggingface.place(x, where[p])) for p, x in flatten(stored).items())
    if changes:
        leaves = ((path, changes.onto(path, x)) for path, x in leaves)
    return Stream(config, leaves, directory)


def open_model(directory: str | Path, tower: str | Path | None = None, **settings: Any) -> Loaded:
    """Open a model whose parameters stay on disk, in their own dtypes, until they are read.

    Args:
        directory: native or Hugging Face model directory.
        tower: see `load_config`.
        **settings: see `load_config`.

    Raises:
        InputError: what is wrong with the directory; values are checked when they are read.
    """
    directory = hub.folder(directory).absolute()
    config = load_config(directory, tower, **settings)
    if is_native(directory):
        return Loaded(config, native.open_params(directory / "params", config), directory)
    shards = _open(directory, config, tower)
    return Loaded(config, huggingface.open_params(shards, config), directory)


def _tower(tower: str | Path | None) -> dict[str, Path]:
    return {"tower": hub.folder(tower)} if tower else {}


def _no_tower(directory: Path, tower: str | Path | None) -> None:
    if tower:
        raise InputError(f"--tower={tower}: {directory} is a native directory, which has its own")


def _open(directory: Path, config: ModelConfig, tower: str | Path | None) -> TensorFiles:
    family = families.of(config)
    return huggingface.open_shards(directory, family, _tower(tower).get("tower"))


def save_model(
    directory: str | Path,
    config: ModelConfig,
    params: dict | Iterator[tuple[str, jax.Array]],
    tokenizer: str | Path | None,
    tower: str | Path | None = None,
) -> None:
    """Write a native model directory; all processes must call this together.

    Everything is written under a temporary name and renamed at the end. A native model directory of
    the same name is replaced. Parameters that are still on disk are read and written one by one.

    Args:
        params: as `families.abstract_params(config)`, arrays (sharded over processes or not) or
            `huggingface.Stored`, any float dtype, stored as it is; or all of them one by one, as
            `Stream.leaves`.
        tokenizer: directory to copy the tokenizer's files from, for instance
            `Loaded.tokenizer_directory`. If it is a model directory of the same shapes, what a
            Hugging Face export needs beyond the parameters is copied along.
        tower: the one with which that directory was loaded.

    Raises:
        InputError: the directory exists and is no native model, or params are not the config's.
    """
    directory, source = Path(directory).absolute(), tokenizer and Path(tokenizer)
    if directory.exists() and not ((directory / "config.json").is_file() and is_native(directory)):
        raise InputError(
            f"{directory} exists and is not a native model directory; choose another name"
        )
    if isinstance(params, dict):
        native.check_tree("params", params, config)
    leads = jax.process_index() == 0
    with replacing_directory(directory, leads) as temporary:
        multihost_utils.sync_global_devices(f"saving {directory}")
        leaves = flatten(params).items() if isinstance(params, dict) else params
        native.write_params(temporary / "params", leaves)
        if leads:
            name, values = families.of(config).name, dataclasses.asdict(config)
            values = {"format": FORMAT, "version": VERSION, "family": name, "model": values}
            write_json(temporary / "config.json", values)
            if source:
                export.copy_files(source, temporary, export.SIDE_FILES)
                _keep(source, temporary / KEPT, config, tower)
    multihost_utils.sync_global_devices(f"saved {directory}")


def _keep(source: Path, target: Path, config: ModelConfig, tower: str | Path | None = None) -> None:
    """Carry over what an export needs, if the source is a model of the same shapes."""
    if not (source / "config.json").is_file():
        return
    values, family = read_json_object(source / "config.json"), families.of(config)
    if values.get("format") == FORMAT:
        if families.named(values.get("family")) is not family:
            return
    elif families.recognise(values, _names(source)) is not family:
        return
    original = load_config(source, tower, **settings_of(config, family.settings))
    if families.abstract_params(original) != families.abstract_params(config):
        return
    if values.get("format") != FORMAT:
        export.keep(_open(source, config, tower), target, config)
    elif (source / KEPT).is_dir():
        shutil.copytree(source / KEPT, target)


def _names(directory: Path) -> dict[str, Any]:
    return TensorFiles(directory).shapes() if any(directory.glob("*.safetensors")) else {}
