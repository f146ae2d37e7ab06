"""What the files of a published checkpoint's processors say, read, checked and written."""

from pathlib import Path

from PIL import Image

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl.config import MEAN, MERGE, PAIR, STD, QwenVLConfig, TowerConfig
from tpo_jax.families.values import check_fixed, read_value
from tpo_jax.io.files import read_json_object

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
_FRAME_TOKENS = 768  # of the published processor where no file says
_FIXED = {
    "temporal_patch_size": PAIR,
    "merge_size": MERGE,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": int(Image.Resampling.BICUBIC),
}


def budget(directory: Path, name: str, tower: TowerConfig) -> tuple[int, int] | None:
    """Return least and most pixels that a processor's file names; None where there is no file.

    Raises:
        InputError: the file asks for another treatment of pixels than the one there is.
    """
    if not (directory / name).is_file():
        return None
    where = f"{directory}/{name}"
    values = read_json_object(directory / name)
    check_fixed(where, values, {"patch_size": tower.patch_size, **_FIXED})
    size = values.get("size", {})
    if not isinstance(size, dict):
        raise InputError(f"{where}: size must be an object")
    least, most = (
        read_value(where, values if values.get(old) else size, old if values.get(old) else new, int)
        for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    )
    return least, most


def frame_tokens(directory: Path) -> int:
    """Return the most visual tokens of a pair of frames, as published if no file says."""
    path = directory / VIDEO_FILE
    values = read_json_object(path) if path.is_file() else {}
    return read_value(str(path), values, "max_video_tokens", int, _FRAME_TOKENS)


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
                f"{path}: answers begin with <think>: Qwen3-VL-Thinking is not supported; "
                f"{reads} is"
            )


def new_files(config: QwenVLConfig) -> dict[str, dict]:
    """Return the processors' JSON files of a model that did not come from a checkpoint."""
    return {
        IMAGE_FILE: _processor("image", config.tower, config.image_pixels),
        VIDEO_FILE: _processor("video", config.tower, config.video_pixels) | _cap(config),
    }


def updated_files(directory: Path, config: QwenVLConfig) -> dict[str, dict]:
    """Return the processor's file of videos where that in a directory says another number of
    visual tokens than the config; else nothing.
    """
    if frame_tokens(directory) == config.frame_tokens:
        return {}
    path = directory / VIDEO_FILE
    given = read_json_object(path) if path.is_file() else new_files(config)[VIDEO_FILE]
    return {VIDEO_FILE: given | _cap(config)}


def _cap(config: QwenVLConfig) -> dict:
    return {"cap_pixels_per_frame": True, "max_video_tokens": config.frame_tokens}


def _processor(kind: str, tower: TowerConfig, budget: tuple[int, int]) -> dict:
    named = {"image": "Qwen2VLImageProcessorFast", "video": "Qwen3VLVideoProcessor"}
    return {
        f"{kind}_processor_type": named[kind],
        "patch_size": tower.patch_size,
        "temporal_patch_size": PAIR,
        "merge_size": MERGE,
        "size": {"shortest_edge": budget[0], "longest_edge": budget[1]},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
