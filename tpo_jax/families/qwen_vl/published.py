"""`config.json` of a published Qwen3-VL checkpoint to `QwenVLConfig` and back."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from tpo_jax.errors import InputError
from tpo_jax.families.qwen_vl import processors
from tpo_jax.families.qwen_vl.config import KIND, MERGE, PAIR, QwenVLConfig, TowerConfig
from tpo_jax.families.qwen_vl.weights import EMBEDDING
from tpo_jax.families.values import check_fixed, read_rows, read_tied, read_value, rotary_base
from tpo_jax.families.weights import Rename, Shape
from tpo_jax.io.files import read_json_object
from tpo_jax.models.config import DecoderConfig

MODEL_TYPE, ARCHITECTURE = KIND, "Qwen3VLForConditionalGeneration"
READS = "Qwen3VLForConditionalGeneration (Qwen3-VL 2B, 4B, 8B, 32B Instruct)"
# Relatives that people may expect here, and why they are not.
_OTHERS = {
    "Qwen3VLMoeForConditionalGeneration": "its MLPs are mixtures of experts",
    "Qwen3_5ForConditionalGeneration": "most of its layers have linear attention",
    "Qwen3_5MoeForConditionalGeneration": "its MLPs are mixtures of experts",
    "Qwen2_5_VLForConditionalGeneration": "its tower has windows",
    "Qwen2VLForConditionalGeneration": "its tower is another one",
}
SETTINGS = ("max_length", "rope_theta", "frame_tokens", "time_instruction")
_TEXT = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
_VISION = {
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": PAIR,
}


def recognises(values: dict, names: Collection[str] = ()) -> bool:
    """Return whether a checkpoint is of this family, or one that its messages know.

    Args:
        values: of its `config.json`.
        names: of its tensors; they tell nothing that `config.json` does not.
    """
    return values.get("model_type") == MODEL_TYPE or bool(_architectures(values))


def _architectures(values: dict) -> list[str]:
    named = values.get("architectures")
    known = {ARCHITECTURE, *_OTHERS}
    return [name for name in named if name in known] if isinstance(named, list) else []


def layout_of(values: dict) -> str:
    """Return the name of the layout that `config.json`'s values are in."""
    return "transformers"


def read_config(directory: Path, shapes: Mapping[str, Shape], settings: dict) -> QwenVLConfig:
    """Return the config of a published checkpoint.

    Args:
        directory: holds `config.json` and, as published, `preprocessor_config.json` and
            `video_preprocessor_config.json` with the pixel budgets.
        shapes: of the stored tensors by name in `weights`.
        settings: of `SETTINGS`, take precedence over the files; `tower`, a folder, is refused.

    Raises:
        InputError: a key is missing, or asks for something these models are not.
    """
    where = f"{directory}/config.json"
    values = read_json_object(directory / "config.json")
    for name in _architectures(values):
        if name in _OTHERS:
            raise InputError(f"{where}: {name} is not supported, {_OTHERS[name]}; {READS} is")
    if tower := settings.get("tower"):
        raise InputError(f"--tower={tower}: {directory} has a tower of its own")
    if EMBEDDING not in shapes:
        raise InputError(f"{directory}: tensor {EMBEDDING} is missing")
    processors.check_chat(directory, READS)
    text, vision = (_section(where, values, f"{name}_config") for name in ("text", "vision"))
    settings = dict(settings)
    theta = settings.pop("rope_theta", None) or rotary_base(where, text, 5e5)
    try:
        tower, decoder = _tower(where, vision), _decoder(where, values, text, shapes, theta)
        if (outputs := vision.get("out_hidden_size", decoder.width)) != decoder.width:
            raise InputError(f"{where}: out_hidden_size={outputs!r} must be {decoder.width}")
        length = read_value(where, text, "max_position_embeddings", int, 128000)
        budgets = {
            "video_pixels": processors.budget(directory, processors.VIDEO_FILE, tower),
            "image_pixels": processors.budget(directory, processors.IMAGE_FILE, tower),
        }
        given = {"max_length": length, **{k: v for k, v in budgets.items() if v}}
        given |= {"frame_tokens": processors.frame_tokens(directory), **settings}
        return QwenVLConfig(tower, decoder, **given)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _section(where: str, values: dict, name: str) -> dict:
    part = values.get(name)
    if not isinstance(part, dict):
        raise InputError(f"{where}: {name} must be an object")
    return part


def _tower(where: str, vision: dict) -> TowerConfig:
    check_fixed(where, vision, _VISION)
    table = read_value(where, vision, "num_position_embeddings", int, 2304)
    if math.isqrt(table) ** 2 != table:
        raise InputError(f"{where}: num_position_embeddings={table} must be a square")
    levels = vision.get("deepstack_visual_indexes", [8, 16, 24])
    if not isinstance(levels, list):
        raise InputError(f"{where}: deepstack_visual_indexes={levels!r} must be a list")
    return TowerConfig(
        kind=KIND,
        patch_size=read_value(where, vision, "patch_size", int, 16),
        width=read_value(where, vision, "hidden_size", int, 1152),
        layers=read_value(where, vision, "depth", int, 27),
        heads=read_value(where, vision, "num_heads", int, 16),
        mlp_width=read_value(where, vision, "intermediate_size", int, 4304),
        table=math.isqrt(table),
        deepstack=tuple(levels),
    )


def _decoder(
    where: str, values: dict, text: dict, shapes: Mapping[str, Shape], theta: float
) -> DecoderConfig:
    check_fixed(where, text, _TEXT)
    width, heads = (
        read_value(where, text, key, int) for key in ("hidden_size", "num_attention_heads")
    )
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"{where}: {rope!r}: rope_parameters or rope_scaling must be an object")
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind not in ("default", "mrope"):
        raise InputError(f"{where}: rope_type={kind!r}: scaled positions are not supported")
    check_fixed(where, rope, {"mrope_interleaved": True})
    sections = rope.get("mrope_section", [24, 20, 20])
    if not isinstance(sections, list):
        raise InputError(f"{where}: mrope_section={sections!r} must be a list")
    # What `transformers` asks, and for files without it what the decoder says of itself.
    says = values if values.get("tie_word_embeddings") is not None else text
    return DecoderConfig(
        vocab_size=read_rows(where, text, shapes, EMBEDDING),
        width=width,
        layers=read_value(where, text, "num_hidden_layers", int),
        heads=heads,
        kv_heads=read_value(where, text, "num_key_value_heads", int, heads),
        head_dim=read_value(where, text, "head_dim", int, 128),
        mlp_width=read_value(where, text, "intermediate_size", int),
        rope_theta=theta,
        norm_eps=read_value(where, text, "rms_norm_eps", float, 1e-6),
        tied=read_tied(where, says, stored=shapes, embedding=EMBEDDING),
        qkv_bias=False,
        qk_norm=True,
        rope_sections=tuple(sections),
        rope_interleaved=True,
    )


def beside(
    directory: Path, shapes: Mapping[str, Shape], tower: Path | None
) -> tuple[Path, Rename] | None:
    """Return None: a checkpoint lacks no tensors."""
    return None


def update_config(values: dict, config: QwenVLConfig) -> dict:
    """Return `config.json`'s values, changed where the config says something else on positions."""
    text = values["text_config"]
    if text.get("max_position_embeddings", 128000) != config.max_length:
        text = text | {"max_position_embeddings": config.max_length}
    if rotary_base("config.json", text, 5e5) != (theta := config.decoder.rope_theta):
        nested = text.get("rope_parameters")
        if "rope_theta" not in text and isinstance(nested, dict):
            text = text | {"rope_parameters": nested | {"rope_theta": theta}}
        else:
            text = text | {"rope_theta": theta}
    return values if text == values["text_config"] else values | {"text_config": text}


def new_config(config: QwenVLConfig, dtype: str) -> dict[str, dict]:
    """Return the JSON files of a model that did not come from a checkpoint."""
    decoder, tower = config.decoder, config.tower
    rope = {
        "rope_type": "default",
        "rope_theta": decoder.rope_theta,
        "mrope_section": list(decoder.rope_sections),
        "mrope_interleaved": True,
    }
    text = {
        "model_type": f"{MODEL_TYPE}_text",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "rms_norm_eps": decoder.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": decoder.tied,
        **{key: value for key, value in _TEXT.items() if key != "use_sliding_window"},
    }
    vision = {
        "model_type": f"{MODEL_TYPE}_vision",
        "depth": tower.layers,
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_heads": tower.heads,
        "patch_size": tower.patch_size,
        "out_hidden_size": decoder.width,
        "num_position_embeddings": tower.table**2,
        "deepstack_visual_indexes": list(tower.deepstack),
        **_VISION,
    }
    values = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": decoder.tied,
        **_placeholders(decoder.vocab_size),
    }
    return {"config.json": values, **processors.new_files(config)}


# Ids of the published tokenizer.
_PUBLISHED_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


def _placeholders(rows: int) -> dict[str, int]:
    """Return the ids of vision tokens; in a small vocabulary, which is not published, the last."""
    if rows > max(_PUBLISHED_IDS.values()):
        return _PUBLISHED_IDS
    return {name: rows - 4 + i for i, name in enumerate(_PUBLISHED_IDS)}


def config_files(directory: Path) -> list[Path]:
    """Return no files: those of the processors are given back with the tokenizer's."""
    return []
