"""Parts of a published `config.json`, text and vision, to configs of decoder and tower and back."""

import math
from collections.abc import Mapping
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl.config import (
    MERGE,
    PAIR,
    QWEN2_5,
    QWEN3,
    QwenVLConfig,
    TowerConfig,
)
from tpo_jax.families.qwen_vl.weights import EMBEDDING
from tpo_jax.families.values import check_fixed, read_rows, read_tied, read_value
from tpo_jax.families.weights import Shape
from tpo_jax.models.config import DecoderConfig

_TEXT: dict[str, dict[str, Any]] = {
    QWEN3: {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    QWEN2_5: {"hidden_act": "silu", "use_sliding_window": False},
}
_VISION: dict[str, dict[str, Any]] = {
    kind: {
        "hidden_act": activation,
        "in_channels": 3,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": PAIR,
    }
    for kind, activation in ((QWEN3, "gelu_pytorch_tanh"), (QWEN2_5, "silu"))
}
_SECTIONS = {QWEN3: [24, 20, 20], QWEN2_5: [16, 24, 24]}
_EPS = {QWEN3: 1e-6, QWEN2_5: 1e-5}


def read_tower(where: str, kind: str, vision: dict) -> TowerConfig:
    """Return the tower that a vision section describes.

    Args:
        where: the file, for messages.
        kind: `QWEN3` or `QWEN2_5`.
        vision: the section's values.

    Raises:
        InputError: a value is missing or not supported.
        ValueError: the values are inconsistent.
    """
    check_fixed(where, vision, _VISION[kind])
    read = read_table if kind == QWEN3 else read_windows
    return read(where, vision)


def read_table(where: str, vision: dict) -> TowerConfig:
    """Return a tower of Qwen3-VL; see `read_tower`."""
    table = read_value(where, vision, "num_position_embeddings", int, 2304)
    if math.isqrt(table) ** 2 != table:
        raise InputError(f"{where}: num_position_embeddings={table} must be a square")
    return TowerConfig(
        kind=QWEN3,
        patch_size=read_value(where, vision, "patch_size", int, 16),
        width=read_value(where, vision, "hidden_size", int, 1152),
        layers=read_value(where, vision, "depth", int, 27),
        heads=read_value(where, vision, "num_heads", int, 16),
        mlp_width=read_value(where, vision, "intermediate_size", int, 4304),
        table=math.isqrt(table),
        deepstack=_list(where, vision, "deepstack_visual_indexes", [8, 16, 24]),
    )


def read_windows(where: str, vision: dict) -> TowerConfig:
    """Return a tower of Qwen2.5-VL; see `read_tower`."""
    rope = vision.get("rope_parameters")
    check_fixed(where, rope if isinstance(rope, dict) else {}, {"rope_theta": 1e4})
    check_fixed(where, vision, {"in_chans": 3})
    patch = read_value(where, vision, "patch_size", int, 14)
    window = read_value(where, vision, "window_size", int, 112)
    if window < MERGE * patch:
        raise InputError(f"{where}: window_size={window} holds no visual token")
    return TowerConfig(
        kind=QWEN2_5,
        patch_size=patch,
        width=read_value(where, vision, "hidden_size", int),
        layers=read_value(where, vision, "depth", int, 32),
        heads=read_value(where, vision, "num_heads", int, 16),
        mlp_width=read_value(where, vision, "intermediate_size", int, 3420),
        window=window // MERGE // patch,
        full_blocks=_list(where, vision, "fullatt_block_indexes", [7, 15, 23, 31]),
        tokens_per_second=read_value(where, vision, "tokens_per_second", int, 4),
    )


def _list(where: str, values: dict, key: str, default: list[int]) -> tuple:
    if not isinstance(value := values.get(key, default), list):
        raise InputError(f"{where}: {key}={value!r} must be a list")
    return tuple(value)


def read_decoder(
    where: str, kind: str, values: dict, text: dict, shapes: Mapping[str, Shape], theta: float
) -> DecoderConfig:
    """Return the decoder that a text section describes.

    Args:
        where: the file, for messages.
        kind: `QWEN3` or `QWEN2_5`.
        values: of the whole file.
        text: the section's values.
        shapes: of the stored tensors.
        theta: base of the rotary wavelengths.

    Raises:
        InputError: a value is missing or not supported.
        ValueError: the values are inconsistent.
    """
    check_fixed(where, text, _TEXT[kind])
    width, heads = (
        read_value(where, text, key, int) for key in ("hidden_size", "num_attention_heads")
    )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{where}: {rope!r}: rope_parameters or rope_scaling must be an object")
    scaling = rope.get("rope_type", rope.get("type")) or "default"
    if scaling not in ("default", "mrope"):
        raise InputError(f"{where}: rope_type={scaling!r}: scaled positions are not supported")
    newer = kind == QWEN3
    check_fixed(where, rope, {"mrope_interleaved": newer})
    # For Qwen3-VL the top level decides, as in `transformers`; otherwise either section may say so.
    says = [values] if newer and values.get("tie_word_embeddings") is not None else [values, text]
    return DecoderConfig(
        vocab_size=read_rows(where, text, shapes, EMBEDDING),
        width=width,
        layers=read_value(where, text, "num_hidden_layers", int),
        heads=heads,
        kv_heads=read_value(where, text, "num_key_value_heads", int, heads),
        head_dim=read_value(where, text, "head_dim", int, 128 if newer else width // heads),
        mlp_width=read_value(where, text, "intermediate_size", int),
        rope_theta=theta,
        norm_eps=read_value(where, text, "rms_norm_eps", float, _EPS[kind]),
        tied=read_tied(where, *says, stored=shapes, embedding=EMBEDDING),
        qkv_bias=not newer,
        qk_norm=newer,
        rope_sections=_list(where, rope, "mrope_section", _SECTIONS[kind]),
        rope_interleaved=newer,
    )


def vision_section(config: QwenVLConfig) -> dict[str, Any]:
    """Return the values of a vision section."""
    tower = config.tower
    values = {
        "model_type": f"{tower.kind}_vision",
        "depth": tower.layers,
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_heads": tower.heads,
        "patch_size": tower.patch_size,
        "out_hidden_size": config.decoder.width,
        **_VISION[tower.kind],
    }
    if tower.kind == QWEN3:
        return values | {
            "num_position_embeddings": tower.table**2,
            "deepstack_visual_indexes": list(tower.deepstack),
        }
    return values | {
        "window_size": tower.window * tower.token_side,
        "fullatt_block_indexes": list(tower.full_blocks),
        "tokens_per_second": tower.tokens_per_second,
    }


def text_section(config: QwenVLConfig) -> dict[str, Any]:
    """Return the values of a text section."""
    decoder, kind = config.decoder, config.tower.kind
    rope = {
        "rope_type": "default",
        "rope_theta": decoder.rope_theta,
        "mrope_section": list(decoder.rope_sections),
    }
    return {
        "model_type": f"{kind}_text",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "rms_norm_eps": decoder.norm_eps,
        "rope_parameters": rope | ({"mrope_interleaved": True} if kind == QWEN3 else {}),
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": decoder.tied,
        **{key: value for key, value in _TEXT[kind].items() if key != "use_sliding_window"},
    }
