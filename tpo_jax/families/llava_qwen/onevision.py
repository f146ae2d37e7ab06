"""LLaVA-OneVision as `transformers` lays it out (`LlavaOnevisionForConditionalGeneration`): the
decoder's config in `text_config`, the tower's in `vision_config`.
"""

from collections.abc import Mapping

from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import (
    ImageConfig,
    LlavaQwenConfig,
    TowerConfig,
    pinpoints,
    spatial_unpad,
)
from tpo_jax.families.llava_qwen.towers import tower_numbers, tower_values
from tpo_jax.families.values import (
    check_fixed,
    read_rows,
    read_tied,
    read_value,
    rotary_base,
    scaled_positions,
)
from tpo_jax.families.weights import Shape
from tpo_jax.models.config import DecoderConfig

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"
_FIXED = {
    "vision_feature_select_strategy": "full",
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
}
_TEXT_FIXED = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False}
# Ids of the published tokenizer's `<image>` and `<video>`, and how many ids Qwen2's own has.
_IMAGE, _VIDEO, _QWEN2 = 151646, 151647, 151646
# Defaults of `transformers`, which leaves values equal to them out of its files.
_TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}


def _section(where: str, values: dict, name: str) -> dict:
    part = values.get(name)
    if part is not None and not isinstance(part, dict):
        raise InputError(f"{where}: {name} must be an object")
    return part or {}


def _tower(where: str, values: dict) -> TowerConfig:
    own = _section(where, values, "vision_config") or _SO400M
    check_fixed(where, own, {"model_type": "siglip_vision_model", "vision_use_head": False})
    image, patch, width, blocks, heads, mlp = tower_numbers(where, own, "siglip")
    layer = values.get("vision_feature_layer", -1)
    # Entry 0 of the hidden states is the input of the first block.
    run = blocks + 1 + layer if type(layer) is int and layer < 0 else layer
    if type(run) is not int or not 0 < run <= blocks:
        raise InputError(
            f"{where}: vision_feature_layer={layer!r} is not supported; it must be one of the "
            f"{blocks} blocks"
        )
    return TowerConfig("siglip", image, patch, width, run, heads, mlp)


def _stills(where: str, values: dict, side: int) -> ImageConfig:
    published = spatial_unpad(side, "one_token")
    aspect = read_value(where, values, "vision_aspect_ratio", str, published.aspect)
    # Heights come before widths, unlike in the original layout.
    given = tuple((w, h) for h, w in pinpoints(values.get("image_grid_pinpoints"), side))
    return ImageConfig(published.merge, aspect, given or published.pinpoints, published.several)


def _settings(where: str, values: dict, text: dict) -> dict:
    return {
        "max_length": read_value(where, text, "max_position_embeddings", int, 32768),
        "time_instruction": "newline" if values.get("add_time_instruction") else "none",
        "rope_theta": rotary_base(where, text, 1e4),
    }


def read_config(
    where: str, values: dict, shapes: Mapping[str, Shape], settings: dict
) -> LlavaQwenConfig:
    """Return the config that a `config.json` describes.

    Args:
        where: the file, for messages.
        values: what it holds.
        shapes: of the stored tensors by name in `weights`.
        settings: take precedence over the file.

    Raises:
        InputError: the file asks for something that is not supported.
    """
    for name, only in (("pooling", "bilinear"), ("newline", "one_token")):
        if settings.get(name, only) != only:
            raise InputError(f"{where}: {name}={settings[name]!r}: {ARCHITECTURE} has {only} only")
    text = _section(where, values, "text_config")
    check_fixed(where, values, _FIXED | {"use_image_newline_parameter": True})
    check_fixed(where, text, _TEXT_FIXED)
    if scaled := scaled_positions(text):
        raise InputError(f"{where}: {scaled}: scaled positions are not supported")
    numbers = {key: read_value(where, text, key, int, n) for key, n in _TEXT_DEFAULTS.items()}
    width, heads = numbers["hidden_size"], numbers["num_attention_heads"]
    settings = {**_settings(where, values, text), **settings}
    decoder = DecoderConfig(
        vocab_size=read_rows(where, text, shapes),
        width=width,
        layers=numbers["num_hidden_layers"],
        heads=heads,
        kv_heads=numbers["num_key_value_heads"],
        head_dim=read_value(where, text, "head_dim", int, width // heads),
        mlp_width=numbers["intermediate_size"],
        rope_theta=settings.pop("rope_theta"),
        norm_eps=read_value(where, text, "rms_norm_eps", float, 1e-6),
        tied=read_tied(where, values, text, stored=shapes),
    )
    fixed = {"pooling": "bilinear", "newline": "one_token"}
    config = LlavaQwenConfig(_tower(where, values), decoder, **{**settings, **fixed})
    side = config.tower.image_size
    stills = _stills(where, values, side)
    return (
        config if stills == config.images else LlavaQwenConfig(**{**vars(config), "stills": stills})
    )


def update_config(values: dict, config: LlavaQwenConfig) -> dict:
    """Return the values of `config.json`, changed where the config differs."""
    text = values.get("text_config") or {}
    read = _settings("config.json", values, text)
    if read["max_length"] != config.max_length:
        text = text | {"max_position_embeddings": config.max_length}
    if read["rope_theta"] != (theta := config.decoder.rope_theta):
        nested = text.get("rope_parameters")
        if "rope_theta" not in text and isinstance(nested, dict):
            text = text | {"rope_parameters": nested | {"rope_theta": theta}}
        else:
            text = text | {"rope_theta": theta}
    if read["time_instruction"] != config.time_instruction:
        values = values | {"add_time_instruction": config.time_instruction != "none"}
    return values if text == (values.get("text_config") or {}) else values | {"text_config": text}


def _placeholders(rows: int) -> dict[str, int]:
    """Return the ids that stand for visual tokens in a vocabulary of `rows` rows."""
    small = rows < _QWEN2 - 3  # not a published vocabulary, which ends with three added tokens
    if not small and rows <= _VIDEO:
        raise InputError(
            f"{ARCHITECTURE} needs embedding rows for <image> and <video>, ids {_IMAGE} and "
            f"{_VIDEO}, and this model has {rows} rows"
        )
    image, video = (rows - 2, rows - 1) if small else (_IMAGE, _VIDEO)
    return {"image_token_index": image, "video_token_index": video}


def new_config(config: LlavaQwenConfig, dtype: str) -> dict[str, dict]:
    """Return the JSON files of a model that did not come from a checkpoint in this layout.

    Raises:
        InputError: this layout cannot express the model.
    """
    decoder, images = config.decoder, config.images
    for name, found, only in (
        ("tower", config.tower.kind, "siglip"),
        ("pooling", config.pooling, "bilinear"),
        ("newline", config.newline, "one_token"),
        ("mm_patch_merge_type", images.merge, "spatial_unpad"),
    ):
        if found != only:
            raise InputError(f"{ARCHITECTURE} has {name} {only} only, and this model has {found}")
    text = {
        "model_type": "qwen2",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "max_position_embeddings": config.max_length,
        "use_sliding_window": False,
        "tie_word_embeddings": decoder.tied,
    }
    values = {
        "architectures": [ARCHITECTURE],
        "model_type": "llava_onevision",
        "torch_dtype": dtype,
        "text_config": text,
        "vision_config": tower_values(config.tower, config.tower.layers)
        | {"vision_use_head": False},
        **_placeholders(decoder.vocab_size),
        **_FIXED,
        "vision_feature_layer": -1,
        "vision_aspect_ratio": images.aspect,
        "image_grid_pinpoints": [[h, w] for w, h in images.pinpoints],
        "tie_word_embeddings": decoder.tied,
    }
    if config.time_instruction != "none":
        values["add_time_instruction"] = True
    return {"config.json": values}
