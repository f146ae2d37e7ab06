"""The PyTorch originals, tiny: towers and decoder of transformers, the connector as described.

`Original` has the module tree, and so the tensor names, of a released checkpoint.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the parity tests compare with PyTorch")
transformers = pytest.importorskip(
    "transformers", reason="the parity tests compare with transformers"
)

from safetensors.torch import save_file  # noqa: E402

from tpo_jax.families.llava_qwen.config import LlavaQwenConfig, TowerConfig  # noqa: E402
from tpo_jax.models.config import DecoderConfig  # noqa: E402

# These models are too small for threads, and tests run beside each other.
torch.set_num_threads(1)

_DECODER = DecoderConfig(
    vocab_size=97,
    width=60,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=10,
    mlp_width=84,
    rope_theta=1e9,
)
# Head sizes 6, 9 and 10; SigLIP has 27 patches a side and, as at full size, pixels left over.
LONGVA = LlavaQwenConfig(TowerConfig("clip", 24, 4, 30, 2, 5, 44), _DECODER, max_length=512)
LLAVA_VIDEO = LlavaQwenConfig(
    TowerConfig("siglip", 110, 4, 36, 2, 4, 52),
    dataclasses.replace(_DECODER, rope_theta=1e6),
    newline="grid",
    max_length=4096,
)


def randomize(module):
    """Every tensor matters: norms differ from one, biases from zero, activations stay near one."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name:
                weight.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            elif weight.ndim > 1 and "embed" not in name:
                weight.normal_(0.0, weight[0].numel() ** -0.5)
            else:
                weight.normal_(0.0, 0.5)


class _Tower(torch.nn.Module):
    """The wrapper the names stem from: `vision_tower.vision_tower`."""

    def __init__(self, tower: TowerConfig):
        super().__init__()
        numbers = {
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "hidden_size": tower.width,
            "num_hidden_layers": tower.layers + 1,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.mlp_width,
            "attn_implementation": "eager",
        }
        if tower.kind == "clip":
            self.config = transformers.CLIPVisionConfig(**numbers)
            self.vision_tower = transformers.CLIPVisionModel(self.config)
        else:
            self.config = transformers.SiglipVisionConfig(**numbers, vision_use_head=False)
            self.vision_tower = transformers.SiglipVisionModel(self.config)
        self.tower = tower

    def forward(self, frames):
        """uint8 [F, S, S, 3] to [F, N, width]."""
        mean, std = (
            torch.tensor(x, dtype=torch.float32) for x in (self.tower.mean, self.tower.std)
        )
        x = (frames.double() * (1 / 255)).float()
        x = ((x - mean) / std).permute(0, 3, 1, 2)
        # Of n blocks the last but one, before any norm: SigLIP deletes the last, CLIP selects -2.
        x = self.vision_tower(x, output_hidden_states=True).hidden_states[-2]
        return x[:, 1:] if self.tower.kind == "clip" else x


def pool(x, mode):
    """[F, N, D] to [F, g', g', D], kernel and stride 2."""
    g = round(x.shape[1] ** 0.5)
    x = x.reshape(-1, g, g, x.shape[-1]).permute(0, 3, 1, 2)
    if mode == "average":
        x = torch.nn.functional.avg_pool2d(x, 2)
    elif mode == "max":
        x = torch.nn.functional.max_pool2d(x, 2)
    else:
        size = [-(-g // 2)] * 2
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def place_newlines(x, newline, position):
    """[F, g, g, D] to [n, D]."""
    F, g, _, D = x.shape
    if position == "grid":
        return torch.cat([x, newline.expand(F, g, 1, D)], dim=2).reshape(-1, D)
    x = x.reshape(F, g * g, D)
    if position == "frame":
        return torch.cat([x, newline.expand(F, 1, D)], dim=1).reshape(-1, D)
    x = x.reshape(-1, D)
    return torch.cat([x, newline[None]]) if position == "one_token" else x


def best_resolution(size, pinpoints):
    """Of (width, height): the largest effective area, then the least waste, then the first."""
    best, most, least = None, 0, float("inf")
    for width, height in pinpoints:
        scale = min(width / size[0], height / size[1])
        scaled = int(size[0] * scale) * int(size[1] * scale)
        effective = min(scaled, size[0] * size[1])
        wasted = width * height - effective
        if effective > most or (effective == most and wasted < least):
            best, most, least = (width, height), effective, wasted
    return best


def anyres_views(image, side, pinpoints):
    """PIL image to uint8 [1 + tiles, S, S, 3]: squashed, then cut (`process_anyres_image`)."""
    width, height = best_resolution(image.size, pinpoints)
    w, h = width / image.width, height / image.height
    if w < h:
        size = width, min(math.ceil(image.height * w), height)
    else:
        size = min(math.ceil(image.width * h), width), height
    padded = Image.new("RGB", (width, height), (0, 0, 0))
    padded.paste(image.resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    tiles = [
        padded.crop((x, y, x + side, y + side))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]
    return np.stack([np.asarray(view) for view in (image.resize((side, side)), *tiles)])


def merge_unires(x):
    """[1 + tiles, N, D] to [n, D]: no thumbnail, 2x2 averages, tile after tile."""
    return pool(x[1:], "average").reshape(-1, x.shape[-1])


def merge_spatial_unpad(x, newline, size, side, pinpoints, max_tiles):
    """[1 + tiles, N, D] to [n, D] (`spatial_unpad`)."""
    base, x = x[0], x[1:]
    g, D = round(base.shape[0] ** 0.5), x.shape[-1]
    width, height = best_resolution(size, pinpoints)
    x = x.reshape(height // side, width // side, g, g, D)
    x = x.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    H, W = x.shape[1:]
    if size[0] / size[1] > W / H:
        padding = (H - int(size[1] * (W / size[0]))) // 2
        x = x[:, padding : H - padding]
    else:
        padding = (W - int(size[0] * (H / size[1]))) // 2
        x = x[:, :, padding : W - padding]
    H, W = x.shape[1:]
    times = math.sqrt(H * W / (max_tiles * g**2))
    if times > 1.1:
        shrunk = [int(H // times), int(W // times)]
        x = torch.nn.functional.interpolate(x[None], shrunk, mode="bilinear")[0]
    x = torch.cat([x, newline[:, None, None].expand(D, x.shape[1], 1)], dim=-1)
    return torch.cat([base, x.flatten(1, 2).T])


class Original(torch.nn.Module):
    """`LlavaQwenForCausalLM` for one video, or some images, between texts."""

    def __init__(self, config: LlavaQwenConfig, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        decoder, D = config.decoder, config.decoder.width
        self.config = config
        self.qwen_config = transformers.Qwen2Config(
            vocab_size=decoder.vocab_size,
            hidden_size=D,
            intermediate_size=decoder.mlp_width,
            num_hidden_layers=decoder.layers,
            num_attention_heads=decoder.heads,
            num_key_value_heads=decoder.kv_heads,
            rms_norm_eps=decoder.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": decoder.rope_theta},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        causal = transformers.Qwen2ForCausalLM(self.qwen_config)
        self.model, self.lm_head = causal.model, causal.lm_head
        self.model.vision_tower = _Tower(config.tower)
        self.model.mm_projector = torch.nn.Sequential(
            torch.nn.Linear(config.tower.width, D), torch.nn.GELU(), torch.nn.Linear(D, D)
        )
        if config.has_newline:
            self.model.image_newline = torch.nn.Parameter(torch.zeros(D))
        randomize(self)
        self.requires_grad_(True)

    def encode(self, frames):
        """uint8 [F, S, S, 3] to visual tokens [n, D]."""
        x = pool(self.model.mm_projector(self.model.vision_tower(frames)), self.config.pooling)
        newline = self.model.image_newline if self.config.has_newline else None
        return place_newlines(x, newline, self.config.newline)

    def encode_image(self, image, pinpoints):
        """PIL image to visual tokens [n, D]."""
        side = self.config.tower.image_size
        views = torch.tensor(anyres_views(image, side, pinpoints))
        x = self.model.mm_projector(self.model.vision_tower(views))
        if self.config.tower.kind == "clip":
            return merge_unires(x)
        newline = self.model.image_newline
        return merge_spatial_unpad(x, newline, image.size, side, pinpoints, max_tiles=9)

    def hidden(self, frames, before, after):
        """Normed hidden states [len(before) + n + len(after), D]; the texts are lists of ids."""
        return self.hidden_of([before, self.encode(frames), after])

    def hidden_of(self, parts):
        """Normed hidden states [n, D] of ids and visual tokens [m, D] in turn."""
        embed = self.model.embed_tokens
        x = [embed(torch.tensor(part)) if isinstance(part, list) else part for part in parts]
        return self.model(inputs_embeds=torch.cat(x)[None]).last_hidden_state[0]

    def forward(self, frames, before, after):
        """Logits [len(before) + n + len(after), W]."""
        return self.lm_head(self.hidden(frames, before, after))

    def checkpoint_tensors(self) -> dict:
        """The tensors a released checkpoint holds, under its names."""
        bare, full = "vision_tower.vision_tower.", "vision_tower.vision_tower.vision_model."
        tensors = {
            name if full in name else name.replace(bare, full): value
            for name, value in self.state_dict().items()
            if "position_ids" not in name
        }
        if self.config.tower.kind == "siglip":  # deletes its last block when it is built
            deleted = f"encoder.layers.{self.config.tower.layers}."
            tensors = {name: value for name, value in tensors.items() if deleted not in name}
        return tensors

    def config_values(self) -> dict:
        """`config.json` of a released checkpoint of this family."""
        own = self.qwen_config.to_dict()
        own.pop("rope_parameters")
        longva = self.config.tower.kind == "clip"
        return own | {
            "architectures": ["LlavaQwenForCausalLM"],
            "model_type": "llava_qwen",
            "rope_theta": self.config.decoder.rope_theta,
            "mm_vision_tower": "vision_tower",
            "mm_hidden_size": self.config.tower.width,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_projector_type": "mlp2x_gelu",
            "mm_patch_merge_type": "unires" if longva else "spatial_unpad",
            "mm_newline_position": self.config.newline,
            "image_aspect_ratio": self.config.images.aspect,
            "image_grid_pinpoints": [list(pair) for pair in self.config.images.pinpoints],
            "mm_spatial_pool_mode": self.config.pooling,
            "mm_spatial_pool_stride": 2,
            "tokenizer_model_max_length": self.config.max_length,
        }


def write_checkpoint(
    directory: Path, original: Original, *, shards: int = 3, dtype=torch.float32
) -> dict[str, np.ndarray]:
    """Writes a checkpoint as released ones are laid out; returns its tensors."""
    tensors = {name: value.to(dtype) for name, value in original.checkpoint_tensors().items()}
    directory.mkdir(parents=True, exist_ok=True)
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[i::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    values = original.config_values() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (directory / "config.json").write_text(json.dumps(values, indent=2))
    (directory / "vision_tower").mkdir(exist_ok=True)
    tower = original.model.vision_tower.config.to_dict()
    (directory / "vision_tower" / "config.json").write_text(json.dumps(tower))
    return tensors
