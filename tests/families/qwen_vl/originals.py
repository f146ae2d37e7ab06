"""A tiny random Qwen3-VL of `transformers`, its checkpoint, and its inputs from our rows."""

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
from tpo_jax.families.qwen_vl.config import MERGE, QwenVLConfig  # noqa: E402
from tpo_jax.families.qwen_vl.processing import grids  # noqa: E402
from tpo_jax.families.qwen_vl.template import INFERENCE  # noqa: E402
from tpo_jax.models.pictures import Pictures  # noqa: E402
from tpo_jax.worlds.tokenizer import train_tokenizer  # noqa: E402

torch.set_num_threads(1)


def make_tokenizer() -> Tokenizer:
    """Bytes, some words, and the template's tokens with those of visuals after them."""
    tokenizer = train_tokenizer(["user\n", "assistant\n", " seconds>"] * 9, 300)
    tokenizer.add_special_tokens([*INFERENCE.markers[2:]])
    return tokenizer


def make_original(config: QwenVLConfig = CONFIG, seed: int = 0):
    """Random weights, every one of which matters."""
    values, tokenizer = published.new_config(config, "float32")["config.json"], make_tokenizer()
    for kind in ("image", "video"):
        values[f"{kind}_token_id"] = tokenizer.token_to_id(f"<|{kind}_pad|>")
    torch.manual_seed(seed)
    made = transformers.Qwen3VLConfig(**values, attn_implementation="eager")
    model = transformers.Qwen3VLForConditionalGeneration(made)
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


def their_inputs(tokenizer: Tokenizer, row, visual, answer: int = 0, question: int = 0) -> dict:
    """The inputs of the original for a row of ours: its tokens, and its visual's pixels."""
    images = isinstance(visual, Pictures)
    frames = visual.views if images else visual
    pad = tokenizer.token_to_id("<|image_pad|>" if images else "<|video_pad|>")
    n = int(row.prefix_mask.sum())
    ids = np.where(row.visual_index >= 0, pad, row.prefix_ids)[:n].tolist()
    ids += row.input_ids[question, answer][row.input_mask[question, answer]].tolist()
    inputs = {"input_ids": torch.tensor([ids])}
    if not len(frames):
        return inputs
    shapes = grids(frames)
    flat = np.concatenate([f[1 : 1 + r * c] for f, (r, c) in zip(frames, shapes, strict=True)])
    pixels = (torch.tensor(flat) / 255 - 0.5) / 0.5
    kinds = (inputs["input_ids"] == pad).int() * (1 if images else 2)
    if images:
        grid = [(1, r, c) for r, c in shapes]
        return inputs | {
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor(grid),
            "mm_token_type_ids": kinds,
        }
    grid = [(len(list(same)), *shape) for shape, same in itertools.groupby(map(tuple, shapes))]
    return inputs | {
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor(grid),
        "mm_token_type_ids": kinds,
    }


def published_prompt(frames, times, question: str, rate: float = 8.0) -> str:
    """The text of the published processor for a video and a question."""
    from transformers import Qwen3VLProcessor

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
    own._calculate_timestamps = types.MethodType(Qwen3VLProcessor._calculate_timestamps, own)
    video = Qwen3VLProcessor.replace_video_token(own, inputs, 0)
    return f"<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"
