"""`config.json` of a published checkpoint to `LlavaQwenConfig` and back."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from tpo_jax.errors import InputError, note
from tpo_jax.families.llava_qwen import onevision
from tpo_jax.families.llava_qwen.config import (
    ImageConfig,
    LlavaQwenConfig,
    pinpoints,
    spatial_unpad,
    unires,
)
from tpo_jax.families.llava_qwen.towers import (
    published_name,
    read_tower,
    tensor_of_tower,
    tower_beside,
    tower_folder,
    tower_values,
    towers_in,
)
from tpo_jax.families.llava_qwen.weights import CONNECTOR, canonical
from tpo_jax.families.values import (
    check_fixed,
    has_rotary_base,
    read_rows,
    read_tied,
    read_value,
    rotary_base,
    scaled_positions,
    settings_of,
)
from tpo_jax.families.weights import EMBEDDING, Rename, Shape
from tpo_jax.io.files import read_json_object
from tpo_jax.models.config import DecoderConfig

# Written to new checkpoints. `model_type` never decides what a given one is, because people edit it
# for other servers: the original loader goes by the name of the folder.
MODEL_TYPE, ARCHITECTURE = "llava_qwen", "LlavaQwenForCausalLM"
_FIXED = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_stride": 2,
    "add_faster_video": False,
}
# What the file may leave open, by our names; `settings` may hold these.
SETTINGS = ("pooling", "newline", "max_length", "time_instruction", "rope_theta")
# Qwen2's decoder has biases that Llama's and Mistral's lack.
_TELLING = ("model.layers.0.self_attn.q_proj.bias", f"model.{CONNECTOR}.0.weight")


def recognises(values: dict, names: Collection[str] = ()) -> bool:
    """Return whether a checkpoint is of this family.

    Args:
        values: contents of its `config.json`; `architectures` decides.
        names: names of its tensors, which decide if `architectures` does not.
    """
    named = values.get("architectures")
    if isinstance(named, list) and (ARCHITECTURE in named or onevision.ARCHITECTURE in named):
        return True
    if layout_of(values) == "transformers":
        # Other classes of `transformers` have these tensors, too, so a named one is believed.
        found = {canonical(name) for name in names}
        return not named and all(name in found for name in (*_TELLING, "model.image_newline"))
    return bool(values.get("mm_vision_tower")) and all(name in names for name in _TELLING)


def layout_of(values: dict) -> str:
    """Return the name of the layout that `config.json`'s values are in, of `Family.layouts`."""
    return "transformers" if "text_config" in values else "original"


def read_settings(where: str, values: dict) -> dict:
    """Return what `config.json` says about `SETTINGS`, else the published defaults."""
    merge = read_value(where, values, "mm_patch_merge_type", str, "flat")
    newline = "no_token"
    if merge.startswith("spatial"):
        newline = read_value(where, values, "mm_newline_position", str, "one_token")
        if newline == "one_token" and "unpad" not in merge:
            newline = "no_token"
    length = read_value(where, values, "max_position_embeddings", int, 32768)
    # LLaVA-OneVision, which names no newline position and in some files no pooling.
    pooling = "bilinear" if newline == "one_token" else "average"
    return {
        "pooling": read_value(where, values, "mm_spatial_pool_mode", str, pooling),
        "newline": newline,
        "max_length": read_value(where, values, "tokenizer_model_max_length", int, length),
        # The demo and the training code, which read this key, put the sentence on its own line.
        "time_instruction": "newline" if values.get("add_time_instruction") else "none",
        "rope_theta": rotary_base(where, values, 1e9 if merge == "unires" else 1e6),
    }


def _stills(where: str, values: dict, side: int, newline: str) -> ImageConfig:
    """Return what `config.json` says about images, else the published defaults."""
    merge = read_value(where, values, "mm_patch_merge_type", str, "unires")
    published = spatial_unpad(side, newline) if merge.startswith("spatial") else unires(side)
    aspect = read_value(where, values, "image_aspect_ratio", str, published.aspect)
    given = values.get("image_grid_pinpoints")
    tiles = pinpoints(given, side) or published.pinpoints
    return ImageConfig(merge, aspect, tiles, published.several)


def read_config(directory: Path, shapes: Mapping[str, Shape], settings: dict) -> LlavaQwenConfig:
    """Return the config of a published checkpoint.

    Args:
        directory: holds `config.json` and, if that names one, the tower's folder.
        shapes: of the stored tensors by name in `weights`; the embedding's gives the vocabulary
            size and, without a folder of the tower, the tower's give its sizes.
        settings: take precedence over what `config.json` says about `SETTINGS`; `tower`, if there,
            is the folder of the tower.

    Raises:
        InputError: a key is missing or has a value that is not supported.
    """
    where = f"{directory}/config.json"
    values = read_json_object(directory / "config.json")
    if EMBEDDING not in shapes:
        raise InputError(f"{directory}: tensor {EMBEDDING} is missing")
    settings = dict(settings)
    tower = settings.pop("tower", None)
    try:
        if layout_of(values) == "transformers":
            if tower:
                raise InputError(f"--tower={tower}: {directory} has a tower of its own")
            return onevision.read_config(where, values, shapes, settings)
        return _read_original(directory, values, shapes, settings, tower)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _read_original(
    directory: Path, values: dict, shapes: Mapping[str, Shape], settings: dict, tower: Path | None
) -> LlavaQwenConfig:
    where = f"{directory}/config.json"
    check_fixed(where, values, _FIXED)
    read = read_settings(where, values)
    if "rope_theta" not in settings and not has_rotary_base(values):
        note(f"{where}: no rope_theta; the base of the positions is {read['rope_theta']:g}")
    if scaled := scaled_positions(values):
        note(f"{where}: {scaled} is ignored, as the original code does")
    settings = {**read, **settings}
    if values.get("mm_spatial_pool_mode") is None and settings["newline"] == "one_token":
        note(f"{where}: no mm_spatial_pool_mode; frames are pooled {settings['pooling']}")
    width, heads = (
        read_value(where, values, key, int) for key in ("hidden_size", "num_attention_heads")
    )
    decoder = DecoderConfig(
        vocab_size=read_rows(where, values, shapes),
        width=width,
        layers=read_value(where, values, "num_hidden_layers", int),
        heads=heads,
        kv_heads=read_value(where, values, "num_key_value_heads", int),
        head_dim=read_value(where, values, "head_dim", int, width // heads),
        mlp_width=read_value(where, values, "intermediate_size", int),
        rope_theta=settings.pop("rope_theta"),
        norm_eps=read_value(where, values, "rms_norm_eps", float, 1e-6),
        tied=read_tied(where, values, stored=shapes),
    )
    config = LlavaQwenConfig(read_tower(directory, values, shapes, tower), decoder, **settings)
    stills = _stills(where, values, config.tower.image_size, config.newline)
    return config if stills == config.images else replace(config, stills=stills)


def beside(
    directory: Path, shapes: Mapping[str, Shape], tower: Path | None
) -> tuple[Path, Rename] | None:
    """Return the folder of the tower whose tensors a checkpoint lacks, and how to rename them;
    None: it lacks none.

    Raises:
        InputError: the tower is not found.
    """
    values = read_json_object(directory / "config.json")
    folder = tower_beside(directory, values, shapes, tower)
    return (folder, tensor_of_tower) if folder else None


def update_config(values: dict, config: LlavaQwenConfig) -> dict:
    """Return `config.json`'s values, changed where the config differs in one of `SETTINGS`."""
    if layout_of(values) == "transformers":
        return onevision.update_config(values, config)
    keys = {
        "pooling": ("mm_spatial_pool_mode", config.pooling),
        "newline": ("mm_newline_position", config.newline),
        "max_length": ("tokenizer_model_max_length", config.max_length),
        "time_instruction": ("add_time_instruction", config.time_instruction != "none"),
        "rope_theta": ("rope_theta", config.decoder.rope_theta),
    }
    read, wanted = read_settings("config.json", values), settings_of(config, SETTINGS)
    return values | {
        keys[name][0]: keys[name][1] for name in SETTINGS if read[name] != wanted[name]
    }


def config_files(directory: Path) -> list[Path]:
    """Return the config files of the towers' folders inside a checkpoint: of the one that
    `mm_vision_tower` names, and of those directly in the checkpoint.
    """
    values = read_json_object(directory / "config.json")
    if layout_of(values) != "original":
        return []
    folders = {*towers_in(directory), tower_folder(directory, values) or directory}
    inside = [
        folder.resolve().relative_to(directory.resolve())
        for folder in sorted(folders - {directory})
        if folder.resolve().is_relative_to(directory.resolve())
    ]
    names = ("config.json", "preprocessor_config.json")
    return [folder / name for folder in inside for name in names]


def new_config(config: LlavaQwenConfig, dtype: str) -> dict[str, dict]:
    """Return the JSON files, in the original layout, of a model that did not come from it.

    A tower of no published size gets a folder of its own.
    """
    tower = config.tower
    name = published_name(tower)
    files = {"config.json": _new_values(config, name or "vision_tower", dtype)}
    if name:
        return files
    return files | {"vision_tower/config.json": tower_values(tower, tower.layers + 1)}


def _new_values(config: LlavaQwenConfig, tower_name: str, dtype: str) -> dict:
    decoder = config.decoder
    return {
        "architectures": [ARCHITECTURE],
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
        "tie_word_embeddings": decoder.tied,
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
