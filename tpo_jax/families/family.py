"""What a model family brings; everything else is shared."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tpo_jax.families.template import Template
from tpo_jax.families.weights import Shape, Weights
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family, as a folder of this package or a test registers it.

    Functions take the family's own config, an instance of `config`.
    """

    name: str  # in config.json of native model directories
    config: type[ModelConfig]  # a frozen dataclass
    from_dict: Callable[[dict], ModelConfig]  # of dataclasses.asdict; ValueError where it is wrong
    presets: Mapping[str, ModelConfig]
    # The NNX class, called with (config, rngs, ranks) as `models.vlm.VideoLanguageModel` says. A
    # function that imports it, so that a process which only decodes files does without JAX.
    model: Callable[[], Any]
    # Frames uint8 [n, height, width, 3] to uint8 [n, *config.frame_shape]; with `pad` they are
    # widened to a square first.
    preprocess: Callable[..., np.ndarray]
    # One RGB image to its views and tokens. InputError: an image the model cannot take.
    picture: Callable[[Image.Image, Any], Pictures]
    # Prompt templates by style (`template.STYLES`): `inference` and, if there is one, the others.
    templates: Mapping[str, Template]
    # FLOPs of one frame, forward: of the vision tower, and of what is between it and the decoder.
    frame_flops: Callable[[Any], tuple[int, int]]
    # Whether a published config.json is of this family, and what a message calls these checkpoints.
    recognises: Callable[[dict], bool]
    reads: str
    # (directory, shape of every stored tensor by name, settings that take precedence over
    # config.json) to the config. InputError: something missing, or a model this family is not.
    read_config: Callable[[Path, Mapping[str, Shape], dict], Any]
    # What a config says on those settings, and the values of those that have a few only.
    settings: Callable[[Any], dict]
    choices: Mapping[str, tuple[str, ...]]
    # Files beside config.json that an export gives back, relative to the directory.
    config_files: Callable[[Path], list[Path]]
    # (config.json of the original checkpoint, config) to config.json of the export.
    update_config: Callable[[dict, Any], dict]
    # (config, dtype) to the JSON files of a model that did not come from a checkpoint.
    new_config: Callable[[Any, str], dict[str, dict]]
    # (config, shape of every parameter by path) to the names of all weights.
    weights: Callable[[Any, Mapping[str, Shape]], Weights]
    # PyTorch module that holds `projector`, which adapters may carry trained.
    connector: str
    # Frames of the published evaluation by benchmark, where they are not the benchmark's own.
    benchmark_frames: Callable[[Any], Mapping[str, int]]
