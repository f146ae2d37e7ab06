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
    """One model family, as a folder of this package or a test registers it.

    Functions take the family's own config, an instance of `config`.
    """

    name: str  # in config.json of native model directories
    config: type[ModelConfig]  # a frozen dataclass
    from_dict: Callable[[dict], ModelConfig]  # of dataclasses.asdict; ValueError where it is wrong
    presets: Mapping[str, ModelConfig]
    # Dtype that the checkpoints of these sizes were published in; where there are none, float32.
    preset_dtypes: Mapping[str, str]
    # The NNX class, called with (config, rngs, `models.blocks.Projections`). A function that
    # imports it, so that a process which only decodes files does without JAX.
    model: Callable[[], Any]
    # Frames uint8 [n, height, width, 3] to uint8 [config.batch_frames(n), *config.frame_shape];
    # with `pad` they are widened to a square first, if the model takes squares; `rate`: frames for
    # each second of their video, 0 where nobody knows.
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
    # FLOPs of one frame, forward: of the vision tower, and of what is between it and the decoder.
    frame_flops: Callable[[Any], tuple[int, int]]
    # (config.json, names of the tensors) to whether a checkpoint is of this family; the names are
    # empty at first, and given where config.json tells no family. What a message calls these.
    recognises: Callable[[dict, Collection[str]], bool]
    reads: str
    # (directory, shape of every stored tensor by name, settings that take precedence over
    # config.json, and `tower`, a folder) to the config. InputError: something missing, or a model
    # this family is not.
    read_config: Callable[[Path, Mapping[str, Shape], dict], Any]
    # Raises InputError where files beside config.json, in a directory of either layout, tell that
    # the model is another one than this family can ask.
    check_files: Callable[[Path], None]
    # (directory, shapes, folder of the tower if given) to a folder with tensors that the checkpoint
    # lacks, and their names; None: it lacks none. InputError: they are nowhere.
    beside: Callable[[Path, Mapping[str, Shape], Path | None], tuple[Path, Rename] | None]
    # The names of those settings, and the values of those that have a few only.
    settings: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]]
    # Files beside config.json that an export gives back, relative to the directory.
    config_files: Callable[[Path], list[Path]]
    # (config.json of the original checkpoint, config) to config.json of the export.
    update_config: Callable[[dict, Any], dict]
    # (folder of the export, config) to the JSON files beside config.json that are to say something
    # else than the original's there.
    updated_files: Callable[[Path, Any], dict[str, dict]]
    # Layouts of published checkpoints by name, the default one first, and the name of the one that
    # a config.json is in.
    layouts: Mapping[str, Layout]
    layout_of: Callable[[dict], str]
    # (config, shape of every parameter by path) to the names of all weights, and the name there of
    # a stored tensor, in whichever layout.
    weights: Callable[[Any, Mapping[str, Shape]], Weights]
    canonical: Callable[[str], str]
    # PyTorch module that holds `projector`, which adapters may carry trained.
    connector: str
    # Frames of the published evaluation by benchmark, where they are not the benchmark's own.
    benchmark_frames: Callable[[Any], Mapping[str, int]]
