"""`config.json` of a published `llava_qwen` checkpoint to `LlavaQwenConfig` and back."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import (
    ImageConfig,
    LlavaQwenConfig,
    TowerConfig,
    pinpoints,
    spatial_unpad,
    unires,
)
from tpo_jax.families.weights import DECODER
from tpo_jax.io.files import read_json_object
from tpo_jax.models.config import DecoderConfig

MODEL_TYPE = "llava_qwen"

# Dimensions of the published towers: kind, image, patch, width, blocks, heads, MLP width.
_TOWERS = {
    "openai/clip-vit-large-patch14-336": ("clip", 336, 14, 1024, 24, 16, 4096),
    "openai/clip-vit-large-patch14": ("clip", 224, 14, 1024, 24, 16, 4096),
    "google/siglip-so400m-patch14-384": ("siglip", 384, 14, 1152, 27, 16, 4304),
}
# Of a tower's own config.json, in the order of the rows above, with the defaults of `transformers`.
_TOWER_KEYS = (
    ("image_size", 224, 224),
    ("patch_size", 32, 16),
    ("hidden_size", 768, 768),
    ("num_hidden_layers", 12, 12),
    ("num_attention_heads", 12, 12),
    ("intermediate_size", 3072, 3072),
)
# What the originals have compiled in: a config that says otherwise asks for another model.
_TOWER_FIXED = {
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
_FIXED = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_stride": 2,
    "add_faster_video": False,
}
# What the file may leave open, under our name: what `settings` may hold.
SETTINGS = ("pooling", "newline", "max_length", "time_instruction", "rope_theta")
EMBEDDING = DECODER["decoder/embed/embedding"][0]


def recognises(values: dict) -> bool:
    """Return whether `config.json`'s values are those of a `llava_qwen` model."""
    return values.get("model_type") == MODEL_TYPE


def _value(where: str, values: dict, key: str, kind: type, default: Any = None) -> Any:
    """Return a value of the given type, numbers positive; InputError if another or missing."""
    value: Any = default if values.get(key) is None else values[key]
    if value is None:
        raise InputError(f"{where}: key {key!r} is missing")
    if kind is float and type(value) is int:
        value = float(value)
    right = type(value) is kind
    if not right or (kind is not str and not 0 < value < math.inf):
        expected = {str: "a text", int: "a positive integer", float: "a positive number"}[kind]
        raise InputError(f"{where}: {key}={value!r} must be {expected}")
    return value


def tower_folder(directory: Path, values: dict) -> Path | None:
    """Return the folder inside the checkpoint that `mm_vision_tower` names, None if none."""
    name = _value(f"{directory}/config.json", values, "mm_vision_tower", str)
    folder = (directory / name).resolve()
    inside = folder.is_relative_to(directory.resolve()) and folder != directory.resolve()
    return folder if inside and (folder / "config.json").is_file() else None


def _check_fixed(where: str, values: dict, fixed: dict) -> None:
    for key, wanted in fixed.items():
        if values.get(key, wanted) not in (wanted, None):
            raise InputError(
                f"{where}: {key}={values[key]!r} is not supported; it must be {wanted!r}"
            )


def _tower(directory: Path, values: dict) -> TowerConfig:
    folder = tower_folder(directory, values)
    if folder:
        where = f"{folder}/config.json"
        own = read_json_object(folder / "config.json")
        kind = str(own.get("model_type", "")).removesuffix("_vision_model")
        if kind not in _TOWER_FIXED:
            raise InputError(
                f"{where}: model_type is {own.get('model_type')!r}, "
                "must be 'clip_vision_model' or 'siglip_vision_model'"
            )
        _check_fixed(where, own, _TOWER_FIXED[kind])
        image, patch, width, blocks, heads, mlp = (
            _value(where, own, key, int, clip if kind == "clip" else siglip)
            for key, clip, siglip in _TOWER_KEYS
        )
        if width % heads or patch > image or blocks < 2:
            raise InputError(
                f"{where}: hidden_size={width} must be a multiple of num_attention_heads={heads}, "
                f"patch_size={patch} at most image_size={image}, num_hidden_layers={blocks} above 1"
            )
    else:
        name = Path(values["mm_vision_tower"]).name
        matching = [row for known, row in _TOWERS.items() if Path(known).name == name]
        if not matching:
            raise InputError(
                f"{directory}/config.json: mm_vision_tower={values['mm_vision_tower']!r} is no "
                f"folder of the checkpoint with a config.json nor one of {sorted(_TOWERS)}"
            )
        kind, image, patch, width, blocks, heads, mlp = matching[0]
    # SigLIP's last block is deleted whatever mm_vision_select_layer says; so much is -2 for CLIP.
    fixed = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    _check_fixed(f"{directory}/config.json", values, fixed if kind == "clip" else {})
    return TowerConfig(kind, image, patch, width, blocks - 1, heads, mlp)


def read_settings(where: str, values: dict) -> dict:
    """Return what `config.json` says on `SETTINGS`, else the published defaults."""
    merge = _value(where, values, "mm_patch_merge_type", str, "flat")
    newline = "no_token"
    if merge.startswith("spatial"):
        newline = _value(where, values, "mm_newline_position", str, "one_token")
        if newline == "one_token" and "unpad" not in merge:
            newline = "no_token"
    length = _value(where, values, "max_position_embeddings", int, 32768)
    # Newer writers nest the base.
    nested = values.get("rope_parameters")
    rope = values if values.get("rope_theta") or not isinstance(nested, dict) else nested
    published = 1e9 if merge == "unires" else 1e6
    return {
        "pooling": _value(where, values, "mm_spatial_pool_mode", str, "average"),
        "newline": newline,
        "max_length": _value(where, values, "tokenizer_model_max_length", int, length),
        # The demo and the training code, which read this key, put the sentence on its own line.
        "time_instruction": "newline" if values.get("add_time_instruction") else "none",
        "rope_theta": _value(where, rope, "rope_theta", float, published),
    }


def _stills(where: str, values: dict, side: int) -> ImageConfig:
    """Return what `config.json` says on images, else the published defaults."""
    merge = _value(where, values, "mm_patch_merge_type", str, "unires")
    published = spatial_unpad(side) if merge.startswith("spatial") else unires(side)
    aspect = _value(where, values, "image_aspect_ratio", str, published.aspect)
    given = values.get("image_grid_pinpoints")
    return ImageConfig(merge, aspect, pinpoints(given, side) or published.pinpoints)


def read_config(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], settings: dict
) -> LlavaQwenConfig:
    """Return the config of a published checkpoint.

    Args:
        directory: holds `config.json` and, if that names one, the tower's folder.
        shapes: of the stored tensors by name; the embedding's decides on the vocabulary.
        settings: take precedence over what `config.json` says on `SETTINGS`.

    Raises:
        InputError: a key is missing, or asks for something these models are not.
    """
    if EMBEDDING not in shapes:
        raise InputError(f"{directory}: tensor {EMBEDDING} is missing")
    where = f"{directory}/config.json"
    values = read_json_object(directory / "config.json")
    _check_fixed(where, values, _FIXED)
    settings = {**read_settings(where, values), **settings}
    width, heads = (_value(where, values, k, int) for k in ("hidden_size", "num_attention_heads"))
    try:
        decoder = DecoderConfig(
            vocab_size=shapes[EMBEDDING][0],
            width=width,
            layers=_value(where, values, "num_hidden_layers", int),
            heads=heads,
            kv_heads=_value(where, values, "num_key_value_heads", int),
            head_dim=_value(where, values, "head_dim", int, width // heads),
            mlp_width=_value(where, values, "intermediate_size", int),
            rope_theta=settings.pop("rope_theta"),
            norm_eps=_value(where, values, "rms_norm_eps", float, 1e-6),
        )
        config = LlavaQwenConfig(_tower(directory, values), decoder, **settings)
        stills = _stills(where, values, config.tower.image_size)
        return config if stills == config.images else replace(config, stills=stills)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def settings_of(config: LlavaQwenConfig) -> dict:
    """Return what a config says on `SETTINGS`."""
    values = {name: getattr(config, name) for name in SETTINGS if name != "rope_theta"}
    return values | {"rope_theta": config.decoder.rope_theta}


def update_config(values: dict, config: LlavaQwenConfig) -> dict:
    """Return `config.json`'s values, changed where the config says something else on `SETTINGS`."""
    keys = {
        "pooling": ("mm_spatial_pool_mode", config.pooling),
        "newline": ("mm_newline_position", config.newline),
        "max_length": ("tokenizer_model_max_length", config.max_length),
        "time_instruction": ("add_time_instruction", config.time_instruction != "none"),
        "rope_theta": ("rope_theta", config.decoder.rope_theta),
    }
    read, wanted = read_settings("config.json", values), settings_of(config)
    return values | {
        keys[name][0]: keys[name][1] for name in SETTINGS if read[name] != wanted[name]
    }


def config_files(directory: Path) -> list[Path]:
    """Return the config files of the tower's folder, if `mm_vision_tower` names one."""
    folder = tower_folder(directory, read_json_object(directory / "config.json"))
    if not folder:
        return []
    inside = folder.relative_to(directory.resolve())
    return [inside / "config.json", inside / "preprocessor_config.json"]


def new_config(config: LlavaQwenConfig, dtype: str) -> dict[str, dict]:
    """Return the JSON files of a model that did not come from a published checkpoint.

    A tower of no published size gets a folder of its own.
    """
    name = known_tower(config.tower)
    files = {"config.json": new_values(config, name or "vision_tower", dtype)}
    return files if name else files | {"vision_tower/config.json": tower_values(config.tower)}


def new_values(config: LlavaQwenConfig, tower_name: str, dtype: str) -> dict:
    """Return `config.json` of a model that did not come from a Hugging Face checkpoint."""
    decoder = config.decoder
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate_size": decoder.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "mm_vision_tower": tower_name,
        "mm_hidden_size": config.tower.width,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": config.images.merge,
        "mm_newline_position": config.newline,
        "mm_spatial_pool_mode": config.pooling,
        "mm_spatial_pool_stride": 2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.images.aspect,
        "image_grid_pinpoints": [list(pair) for pair in config.images.pinpoints],
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": config.max_length,
        "add_time_instruction": config.time_instruction != "none",
    }


def known_tower(tower: TowerConfig) -> str | None:
    """Return the published name of a tower of these dimensions."""
    numbers = (tower.image_size, tower.patch_size, tower.width, tower.layers + 1, tower.heads)
    row = (tower.kind, *numbers, tower.mlp_width)
    return next((name for name, known in _TOWERS.items() if known == row), None)


def tower_values(tower: TowerConfig) -> dict:
    """Return the tower's own `config.json`, with the block that is never run counted."""
    return {
        "model_type": f"{tower.kind}_vision_model",
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers + 1,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_width,
        **_TOWER_FIXED[tower.kind],
    }
