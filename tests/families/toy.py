"""A model family that the package does not know, and commands run with it registered.

Its encoder merges the patches of two frames into one token each, has no newline vector, and its
prompts are plain `USER: … ASSISTANT: …`.
"""

import dataclasses
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tpo_jax import families
from tpo_jax.families.family import Family, Layout
from tpo_jax.families.template import Template
from tpo_jax.families.weights import DECODER, DECODER_LAYER, DECODER_LAYERS, Weights, leaves, linear
from tpo_jax.io.files import read_json_object
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.decoder import Decoder
from tpo_jax.models.pictures import Pictures
from tpo_jax.models.vlm import VideoLanguageModel


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    decoder: DecoderConfig
    side: int = 16
    patch: int = 8
    width: int = 12
    max_length: int = 256
    time_instruction: str = "none"

    @property
    def frame_shape(self):
        return self.side, self.side, 3

    @property
    def patches_per_frame(self):
        return (self.side // self.patch) ** 2

    tokens_per_frame = patches_per_frame

    frame_text = 0

    def batch_frames(self, num_frames):
        return num_frames

    def visual_tokens(self, num_frames):
        return -(-num_frames // 2) * self.patches_per_frame

    def padded_index(self, index, num_frames, padded):
        return index


class Toy(VideoLanguageModel):
    def __init__(self, config, rngs, projections):
        self.config = config
        self.tower = nnx.Linear(config.patch**2 * 3, config.width, rngs=rngs)
        self.projector = nnx.Linear(config.width, config.decoder.width, rngs=rngs)
        self.decoder = Decoder(config.decoder, rngs, projections)

    def encode(self, batch, *, freeze_tower=False, remat="none"):
        frames = batch.frames
        return self.encode_frames(frames, freeze_tower=freeze_tower)

    def encode_frames(self, frames, *, freeze_tower=False, remat="none"):
        B, F, S, _, _ = frames.shape
        p, g = self.config.patch, S // self.config.patch
        x = frames.reshape(B, F, g, p, g, p * 3).swapaxes(3, 4).reshape(B, F, g * g, p * p * 3)
        x = self.tower(x.astype(self.decoder.norm.scale.dtype) / 255)
        x = jax.lax.stop_gradient(x) if freeze_tower else x
        x = jnp.pad(x, ((0, 0), (0, F % 2), (0, 0), (0, 0)))
        return self.projector(x.reshape(B, -1, 2, g * g, x.shape[-1]).mean(2)).reshape(
            B, -1, self.config.decoder.width
        )


def preprocess(frames, config, pad=False, rate=0.0):
    size = config.frame_shape[:2]
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def picture(image, config, several=False):
    index = 1 + np.pad(np.arange(config.patches_per_frame)[:, None], ((0, 0), (0, 3)))
    weight = np.array([[1, 0, 0, 0]] * len(index), np.float32)
    view = preprocess(np.asarray(image)[None], config)
    return Pictures(view, index.astype(np.int32), weight, (len(index),))


def read_config(directory, shapes, settings):
    values = read_json_object(directory / "config.json")["toy"]
    return from_dict({**values, **settings})


def from_dict(values):
    try:
        return ToyConfig(**{**values, "decoder": DecoderConfig(**values["decoder"])})
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def new_config(config, dtype):
    return {"config.json": {"model_type": "toy", "toy": dataclasses.asdict(config)}}


def weights(config, shapes):
    single = {**DECODER, **linear("tower", "eye"), **linear("projector", "model.bridge")}
    rows = leaves(shapes, single, {"decoder/layers/": (DECODER_LAYERS, DECODER_LAYER)})
    tensors = {name: leaf.shape for leaf in rows.values() for name in leaf.names}
    return Weights(rows, tensors, re.compile("nothing"))


CONFIG = ToyConfig(
    DecoderConfig(
        vocab_size=384,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        rope_theta=1e4,
    )
)
TEMPLATE = Template(
    around={"system": ("", " "), "user": ("USER: ", ""), "assistant": (" ASSISTANT: ", "</s>")},
    end=(("</s>", True),),
    system="A chat.",
    markers=("</s>",),
    tokens=("</s>",),
    stop=("</s>",),
    token_ids={},
)
FAMILY = Family(
    name="toy",
    config=ToyConfig,
    from_dict=from_dict,
    presets={"toy": CONFIG},
    preset_dtypes={"toy": "float32"},
    model=lambda: Toy,
    preprocess=preprocess,
    picture=picture,
    independent_frames=False,
    templates={"inference": TEMPLATE},
    frame_flops=lambda config: (0, 0),
    recognises=lambda values, names: values.get("model_type") == "toy",
    reads="'toy' checkpoints",
    read_config=read_config,
    check_files=lambda directory: None,
    settings=("max_length",),
    choices={},
    config_files=lambda directory: [],
    update_config=lambda values, config: new_config(config, "")["config.json"],
    updated_files=lambda directory, config: {},
    layouts={"original": Layout(new_config, str)},
    layout_of=lambda values: "original",
    canonical=str,
    beside=lambda directory, shapes, tower: None,
    weights=weights,
    connector="bridge",
    benchmark_frames=lambda config: {},
)


def main() -> None:
    """Run one command with the family registered; its name and flags are the arguments."""
    families.FAMILIES["toy"] = FAMILY
    sys.argv[:2] = [f"tpo_jax.{sys.argv[1]}"]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    finally:
        del families.FAMILIES["toy"]  # the next command of this process may not know it


if __name__ == "__main__":
    main()
