"""What a model family brings; everything else is shared."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

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
    # FLOPs of one frame, forward: of the vision tower, and of what is between it and the decoder.
    frame_flops: Callable[[Any], tuple[int, int]]
    # Frames of the published evaluation by benchmark, where they are not the benchmark's own.
    benchmark_frames: Callable[[Any], Mapping[str, int]]
