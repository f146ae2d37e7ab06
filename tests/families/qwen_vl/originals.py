"""Tiny random models of `transformers`, their checkpoints, and their inputs from our rows."""

import itertools
import json
import types

import numpy as np
import pytest
from tokenizers import Tokenizer

torch = pytest.importorskip("torch", reason="the parity tests compare with PyTorch")
transformers = pytest.importorskip("transformers", reason="compared with transformers")

from tests.families.qwen_vl.tiny import CONFIG  # noqa: E402
from tpo_jax.families.qwen_vl import published  # noqa: E402
from tpo_jax.families.qwen_vl.config import MEAN, MERGE, QWEN3, STD, QwenVLConfig  # noqa: E402
from tpo_jax.families.qwen_vl.processing import grids  # noqa: E402
from tpo_jax.families.qwen_vl.template import QWEN3 as TEMPLATE  # noqa: E402
from tpo_jax.models.pictures import Pictures  # noqa: E402
from tpo_jax.worlds.tokenizer import train_tokenizer  # noqa: E402

torch.set_num_threads(1)


def make_tokenizer() -> Tokenizer:
    """Bytes, some words, and the template's tokens with those of visuals after them."""
    tokenizer = train_tokenizer(["user\n", "assistant\n", " seconds>"] * 9, 300)
    tokenizer.add_special_tokens([*TEMPLATE.markers[2:]])
    return tokenizer


def architecture(config: QwenVLConfig):
    """The class of the whole model."""
    return getattr(transformers, published.ARCHITECTURES[config.KIND])


def made_of(config: QwenVLConfig, values: dict, **settings):
    """The config of `config.json`'s values."""
    return architecture(config).config_class(**values, **settings)


def pixels_of(patches: np.ndarray, kind: str):
    """Patches uint8 `[n, pixels]`, normalised."""
    colours = [torch.tensor(x[kind])[:, None] for x in (MEAN, STD)]
    x = torch.tensor(patches).reshape(len(patches), 3, patches.shape[1] // 3) / 255
    return ((x - colours[0]) / colours[1]).flatten(1)


def make_original(config: QwenVLConfig = CONFIG, seed: int = 0):
    """Random weights, every one of which matters."""
    values, tokenizer = published.new_config(config, "float32")["config.json"], make_tokenizer()
    for kind in ("image", "video"):
        values[f"{kind}_token_id"] = tokenizer.token_to_id(f"<|{kind}_pad|>")
    torch.manual_seed(seed)
    model = architecture(config)(made_of(config, values, attn_implementation="eager"))
    with torch.no_grad():
        for name, x in model.named_parameters():
            centre = float("norm" in name and name.endswith("weight"))
            scale = x[0].numel() ** -0.5 if x.ndim > 1 and "embed" not in name else 0.3
            x.normal_(centre, scale)
    return model.eval()


def write_checkpoint(directory, original, config: QwenVLConfig = CONFIG) -> None:
    """As published: weights and config by `transformers`, budgets of the processors, tokenizer."""
    original.save_pretrained(directory)
    files = published.new_config(config, "float32")
    for name in files.keys() - {"config.json"}:
        (directory / name).write_text(json.dumps(files[name]))
    make_tokenizer().save(str(directory / "tokenizer.json"))


def their_inputs(processor, row, visual, answer: int = 0, rate: float = 1.4) -> dict:
    """The inputs of the original for a row of ours: its tokens, and its visual's pixels.

    Args:
        rate: frames a second of a video.
    """
    tokenizer, kind = processor.tokenizer, processor.config.KIND
    images = isinstance(visual, Pictures)
    frames = visual.views if images else visual
    pad = tokenizer.token_to_id("<|image_pad|>" if images else "<|video_pad|>")
    n = int(row.prefix_mask.sum())
    ids = np.where(row.visual_index >= 0, pad, row.prefix_ids)[:n].tolist()
    ids += row.input_ids[0, answer][row.input_mask[0, answer]].tolist()
    inputs = {"input_ids": torch.tensor([ids])}
    if not len(frames):
        return inputs
    shapes = grids(frames)
    flat = np.concatenate([f[1 : 1 + r * c] for f, (r, c) in zip(frames, shapes, strict=True)])
    pixels = pixels_of(flat, kind)
    kinds = (inputs["input_ids"] == pad).int() * (1 if images else 2)
    if images:
        grid = [(1, r, c) for r, c in shapes]
        return inputs | {
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor(grid),
            "mm_token_type_ids": kinds,
        }
    grid = [(len(list(same)), *shape) for shape, same in itertools.groupby(map(tuple, shapes))]
    inputs |= {
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor(grid),
        "mm_token_type_ids": kinds,
    }
    return inputs if kind == QWEN3 else inputs | {"second_per_grid_ts": torch.tensor([2 / rate])}


def published_prompt(config, frames, times, question: str, rate: float = 8.0) -> str:
    """The text of the published processor for a video and a question."""
    from transformers import Qwen2_5_VLProcessor, Qwen3VLProcessor

    metadata = types.SimpleNamespace(
        fps=rate, frames_indices=[round(time * rate) for time in times]
    )
    shape = grids(frames)[0]
    inputs = {
        "video_grid_thw": torch.tensor([(len(frames), *shape)]),
        "video_metadata": [metadata],
    }
    own = types.SimpleNamespace(
        video_processor=types.SimpleNamespace(merge_size=MERGE, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
    )
    end = f"{question}<|im_end|>\n<|im_start|>assistant\n"
    if config.KIND != QWEN3:
        video = Qwen2_5_VLProcessor.replace_video_token(own, inputs, 0)
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        return f"{system}<|im_start|>user\n<|vision_start|>{video}<|vision_end|>{end}"
    own._calculate_timestamps = types.MethodType(Qwen3VLProcessor._calculate_timestamps, own)
    video = Qwen3VLProcessor.replace_video_token(own, inputs, 0)
    return f"<|im_start|>user\n{video}{end}"
