"""What the files of a published checkpoint's processors say, read, checked and written."""

from pathlib import Path
from typing import Any

from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl.config import (
    MEAN,
    MERGE,
    PAIR,
    QWEN3,
    STD,
    Qwen25VLConfig,
    QwenVLConfig,
    TowerConfig,
)
from tpo_jax.families.values import check_fixed, read_value
from tpo_jax.io.files import read_json_object

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
# Limits of the published processors if no file gives one: of a pair of frames, and of all frames
# of a video (Qwen2.5-VL).
_FRAME_TOKENS, _VIDEO_TOKENS = 768, 128000
_FIXED = {
    "temporal_patch_size": PAIR,
    "merge_size": MERGE,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": int(Image.Resampling.BICUBIC),
}


def budget(directory: Path, name: str, tower: TowerConfig) -> tuple[int, int] | None:
    """Return least and most pixels that a processor's file names; None where there is no file.

    Raises:
        InputError: the file asks for a treatment of pixels that is not supported.
    """
    if not (directory / name).is_file():
        return None
    where = f"{directory}/{name}"
    values = read_json_object(directory / name)
    colours = {"image_mean": list(MEAN[tower.kind]), "image_std": list(STD[tower.kind])}
    if (tower.kind, name) == (QWEN3, IMAGE_FILE):
        # A missing key means Qwen2-VL's value, because Qwen2-VL's image processor reads the file.
        for key, wanted in {"patch_size": tower.patch_size, **colours}.items():
            if values.get(key) is None:
                raise InputError(
                    f"{where}: {key} is missing, which means that of Qwen2-VL to the processor; it "
                    f"must be {wanted!r}, as in the published file"
                )
    check_fixed(where, values, {"patch_size": tower.patch_size, **_FIXED, **colours})
    size = values.get("size", {})
    if not isinstance(size, dict):
        raise InputError(f"{where}: size must be an object")
    least, most = (
        read_value(where, values if values.get(old) else size, old if values.get(old) else new, int)
        for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    )
    return least, most


def read_qwen3(directory: Path, tower: TowerConfig, frame_tokens: int | None) -> dict[str, Any]:
    """Return the fields of a `QwenVLConfig` that the processors' files say."""
    found = {
        "video_pixels": budget(directory, VIDEO_FILE, tower),
        "image_pixels": budget(directory, IMAGE_FILE, tower),
        "frame_tokens": frame_tokens or most_tokens(directory, tower),
    }
    return {name: value for name, value in found.items() if value}


def read_qwen2_5(directory: Path, tower: TowerConfig, frame_tokens: int | None) -> dict[str, Any]:
    """Return the fields of a `Qwen25VLConfig` that the processors' files say.

    Published checkpoints have no file for videos; the budgets are then those of `qwen_vl_utils`.
    """
    found = read_qwen3(directory, tower, frame_tokens)
    least, _ = found.get("video_pixels", Qwen25VLConfig.video_pixels)
    cap = found["frame_tokens"] * tower.token_side**2
    path = directory / VIDEO_FILE
    values = read_json_object(path) if path.is_file() else {}
    total = read_value(str(path), values, "max_video_tokens", int, _VIDEO_TOKENS)
    return found | {"video_pixels": (min(least, cap), cap), "video_tokens": total}


def most_tokens(directory: Path, tower: TowerConfig) -> int:
    """Return the most visual tokens of a pair of frames; the published number if no file says.

    A file of Qwen2.5-VL without `cap_pixels_per_frame` has the budget of its images, so the
    published number is then the maximum.
    """
    path = directory / VIDEO_FILE
    values = read_json_object(path) if path.is_file() else {}
    if tower.kind == QWEN3:
        return read_value(str(path), values, "max_video_tokens", int, _FRAME_TOKENS)
    _, most = budget(directory, VIDEO_FILE, tower) or Qwen25VLConfig.video_pixels
    tokens = max(1, most // tower.token_side**2)
    return tokens if values.get("cap_pixels_per_frame") else min(tokens, _FRAME_TOKENS)


def check_chat(directory: Path, reads: str) -> None:
    """Raise InputError where the chat template begins every answer with `<think>`."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        if path.suffix == ".json":
            template = str(read_json_object(path).get("chat_template"))
        else:
            template = path.read_text(encoding="utf-8", errors="replace")
        if "<think>" in template.rpartition("add_generation_prompt")[2]:
            raise InputError(
                f"{path}: answers begin with <think>: Thinking models are not supported; {reads} is"
            )


def new_files(config: QwenVLConfig) -> dict[str, dict]:
    """Return the processors' JSON files of a model that did not come from a checkpoint."""
    return {
        IMAGE_FILE: _processor("image", config.tower, config.image_pixels),
        VIDEO_FILE: _processor("video", config.tower, config.video_pixels) | _cap(config),
    }


def updated_files(directory: Path, config: QwenVLConfig) -> dict[str, dict]:
    """Return the video processor's file if the one in a directory has another number of visual
    tokens than the config; else nothing.
    """
    if most_tokens(directory, config.tower) == config.frame_tokens:
        return {}
    path = directory / VIDEO_FILE
    given = read_json_object(path) if path.is_file() else new_files(config)[VIDEO_FILE]
    changed = _cap(config)
    if "size" in changed:  # older names, which would take precedence
        given = {k: v for k, v in given.items() if k not in ("min_pixels", "max_pixels")}
    return {VIDEO_FILE: given | changed}


def _cap(config: QwenVLConfig) -> dict[str, Any]:
    """Return the settings of a video processor that limit visual tokens."""
    if not isinstance(config, Qwen25VLConfig):
        return {"cap_pixels_per_frame": True, "max_video_tokens": config.frame_tokens}
    cap = config.frame_tokens * config.tower.token_side**2
    return {
        "cap_pixels_per_frame": True,
        "max_video_tokens": config.video_tokens,
        "size": {"shortest_edge": min(config.video_pixels[0], cap), "longest_edge": cap},
    }


def _processor(kind: str, tower: TowerConfig, budget: tuple[int, int]) -> dict[str, Any]:
    newer = tower.kind == QWEN3
    named = {
        "image": "Qwen2VLImageProcessorFast" if newer else "Qwen2VLImageProcessor",
        "video": "Qwen3VLVideoProcessor" if newer else "Qwen2VLVideoProcessor",
    }
    return {
        f"{kind}_processor_type": named[kind],
        "patch_size": tower.patch_size,
        "temporal_patch_size": PAIR,
        "merge_size": MERGE,
        "size": {"shortest_edge": budget[0], "longest_edge": budget[1]},
        "image_mean": list(MEAN[tower.kind]),
        "image_std": list(STD[tower.kind]),
    }
