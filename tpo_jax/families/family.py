"""What a model family brings; everything else is shared."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tpo_jax.families.template import Template
from tpo_jax.families.weights import Rename, Shape, Weights
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published layout of checkpoints, for models that did not come from one."""

    # (config, dtype) to JSON files by path. InputError: the layout cannot hold the model.
    new_config: Callable[[Any, str], dict[str, dict]]
    spelling: Callable[[str], str]  # name of a tensor of `weights` to its name in this layout


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family, as a subpackage or a test registers it.

    Functions take the family's own config, an instance of `config`.
    """

    name: str  # in config.json of native model directories
    config: type[ModelConfig]  # a frozen dataclass
    from_dict: Callable[[dict], ModelConfig]  # undoes dataclasses.asdict; ValueError: wrong values
    presets: Mapping[str, ModelConfig]
    # Dtype that the checkpoint of a preset's size was published in; float32 if there is none.
    preset_dtypes: Mapping[str, str]
    # Returns the NNX class, which is called with (config, rngs, `models.blocks.Projections`). The
    # import is inside, so that a process which only decodes files never imports JAX.
    model: Callable[[], Any]
    # Frames uint8 [n, height, width, 3] to uint8 [config.batch_frames(n), *config.frame_shape];
    # with `pad` they are widened to a square first, if the model takes squares; `rate`: sampled
    # frames per second of video, 0 if unknown.
    preprocess: Callable[..., np.ndarray]
    # (RGB image, config, whether it is one of several) to its views and tokens. InputError: an
    # image the model cannot take.
    picture: Callable[[Image.Image, Any, bool], Pictures]
    # Whether a frame is resized and encoded without looking at the others, and tokens have one
    # position each. Then frames of several sizes may be one visual, and needles are put into a
    # table of encoded frames.
    independent_frames: bool
    # Prompt templates by style (`template.STYLES`): `inference` and, if there is one, the others.
    templates: Mapping[str, Template]
    # Forward FLOPs of one frame: of the vision tower, and of what is between it and the decoder.
    frame_flops: Callable[[Any], tuple[int, int]]
    # (config.json, names of the tensors) to whether a checkpoint is of this family. The names are
    # empty at first; a second call gives them if config.json matches no family.
    recognises: Callable[[dict, Collection[str]], bool]
    reads: str  # what messages call these checkpoints
    # (directory, shape of every stored tensor by name, settings that take precedence over
    # config.json, and `tower`, a folder) to the config. InputError: a key is missing or has an
    # unsupported value.
    read_config: Callable[[Path, Mapping[str, Shape], dict], Any]
    # Raises InputError if files beside config.json, in a directory of either layout, show that the
    # model is a variant which this family cannot prompt.
    check_files: Callable[[Path], None]
    # (directory, shapes, folder of the tower if given) to the folder of the tensors that the
    # checkpoint lacks, and how to rename them; None: it lacks none. InputError: not found.
    beside: Callable[[Path, Mapping[str, Shape], Path | None], tuple[Path, Rename] | None]
    # The names of the settings of `read_config`, and the values of those that are enumerations.
    settings: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]]
    # Files beside config.json that an export gives back, relative to the directory.
    config_files: Callable[[Path], list[Path]]
    # (config.json of the original checkpoint, config) to config.json of the export.
    update_config: Callable[[dict, Any], dict]
    # (folder of the export, config) to the JSON files that must replace the original's beside
    # config.json.
    updated_files: Callable[[Path, Any], dict[str, dict]]
    # Layouts of published checkpoints by name, the default one first, and the name of the one that
    # a config.json is in.
    layouts: Mapping[str, Layout]
    layout_of: Callable[[dict], str]
    # (config, shape of every parameter by path) to the table of all weights; and the name of a
    # stored tensor, in either layout, to its name in that table.
    weights: Callable[[Any, Mapping[str, Shape]], Weights]
    canonical: Callable[[str], str]
    # PyTorch module that holds `projector`; a directory of adapters may hold it, trained.
    connector: str
    # Frames per video of the published evaluation by benchmark, where not the benchmark's own.
    benchmark_frames: Callable[[Any], Mapping[str, int]]
