"""Kind and sizes of a vision tower: from a folder of its own, from the checkpoint's tensors, or
from its published name.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from tpo_jax.errors import InputError, note
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.families.llava_qwen.weights import VISION
from tpo_jax.families.values import check_fixed, read_value
from tpo_jax.families.weights import Shape
from tpo_jax.io.files import read_json_object

# Dimensions of the published towers: kind, image, patch, width, blocks, heads, MLP width.
_PUBLISHED = {
    "openai/clip-vit-large-patch14-336": ("clip", 336, 14, 1024, 24, 16, 4096),
    "openai/clip-vit-large-patch14": ("clip", 224, 14, 1024, 24, 16, 4096),
    "google/siglip-so400m-patch14-384": ("siglip", 384, 14, 1152, 27, 16, 4304),
}
# Keys of a tower's own config.json in the order of the rows above, with the defaults that
# `transformers` has for CLIP and for SigLIP.
_KEYS = (
    ("image_size", 224, 224),
    ("patch_size", 32, 16),
    ("hidden_size", 768, 768),
    ("num_hidden_layers", 12, 12),
    ("num_attention_heads", 12, 12),
    ("intermediate_size", 3072, 3072),
)
# What the originals hard-code: a config that says otherwise asks for another model.
FIXED = {
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
# Widths of towers whose heads are neither 64 nor 72 wide: CLIP H and bigG, SigLIP giant.
_OTHER_HEADS = {"clip": (1280, 1664), "siglip": (1536,)}


def tower_folder(directory: Path, values: dict) -> Path | None:
    """Return the folder that `mm_vision_tower` names, inside the checkpoint or elsewhere;
    None if there is no such folder.
    """
    name = read_value(f"{directory}/config.json", values, "mm_vision_tower", str, "")
    if not name or "\0" in name:
        return None
    for folder in (directory / name, Path(name)):
        if folder.resolve() != directory.resolve() and (folder / "config.json").is_file():
            return folder
    return None


def towers_in(directory: Path) -> list[Path]:
    """Return the folders of towers directly in a checkpoint, whatever its config names."""
    found = []
    for file in sorted(directory.glob("*/config.json")):
        with contextlib.suppress(InputError):  # of something else
            if _kind(read_json_object(file)) in FIXED:
                found.append(file.parent)
    return found


def _kind(values: dict) -> str:
    """Return what a tower's own config says it is, "" if nothing."""
    return str(values.get("model_type") or "").removesuffix("_vision_model")


def has_tower(shapes: Mapping[str, Shape]) -> bool:
    """Return whether a checkpoint holds the tensors of its tower."""
    return any(name.startswith(VISION) for name in shapes)


def tower_beside(
    directory: Path, values: dict, shapes: Mapping[str, Shape], given: Path | None
) -> Path | None:
    """Return the folder that holds the tower's tensors; None if the checkpoint does.

    Raises:
        InputError: no tensors of a tower are found.
    """
    if has_tower(shapes):
        return None
    folder = given or tower_folder(directory, values)
    if folder is None:
        raise InputError(
            f"{directory} holds no tensors of a vision tower, and mm_vision_tower="
            f"{values.get('mm_vision_tower')!r} of its config.json is no folder here; give "
            "--tower=DIR, a Hugging Face CLIP or SigLIP folder"
        )
    return folder


def tensor_of_tower(name: str) -> str | None:
    """Return the name in `weights` of a tensor from a tower's own folder; None: it belongs to
    another part, such as CLIP's text model.
    """
    name = name.removeprefix("vision_model.")
    parts = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
    return VISION + name if name.startswith(parts) else None


def read_tower(
    directory: Path, values: dict, shapes: Mapping[str, Shape], given: Path | None
) -> TowerConfig:
    """Return the tower of a checkpoint in the original layout.

    Args:
        directory: the checkpoint.
        values: of its `config.json`.
        shapes: of its tensors by name.
        given: a folder of the tower, which takes precedence.

    Raises:
        InputError: the tower cannot be determined, or is not one that the originals have.
    """
    where = f"{directory}/config.json"
    beside = tower_beside(directory, values, shapes, given)
    folder = beside or given or tower_folder(directory, values)
    if folder:
        kind, image, patch, width, blocks, heads, mlp = _from_folder(folder)
    else:
        kind, image, patch, width, blocks, heads, mlp = _from_tensors(where, values, shapes)
    # SigLIP's last block is dropped whatever mm_vision_select_layer says; -2 drops CLIP's.
    fixed = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    check_fixed(where, values, fixed if kind == "clip" else {})
    return TowerConfig(kind, image, patch, width, blocks - 1, heads, mlp)


def _from_folder(folder: Path) -> tuple:
    where = f"{folder}/config.json"
    own = read_json_object(folder / "config.json")
    if own.get("model_type") in FIXED and isinstance(own.get("vision_config"), dict):
        own = {**own["vision_config"], "model_type": own["model_type"]}  # text model beside it
    kind = _kind(own)
    if kind not in FIXED:
        raise InputError(
            f"{where}: model_type is {own.get('model_type')!r}, must be 'clip_vision_model' or "
            "'siglip_vision_model', or 'clip' or 'siglip' with a vision_config"
        )
    image, patch, width, blocks, heads, mlp = tower_numbers(where, own, kind)
    if blocks < 2:
        raise InputError(f"{where}: num_hidden_layers={blocks} must be above 1")
    return kind, image, patch, width, blocks, heads, mlp


def tower_numbers(where: str, own: dict, kind: str) -> tuple[int, ...]:
    """Return image, patch, width, blocks, heads and MLP width of a tower's own config.

    Raises:
        InputError: a number is wrong, or the config asks for what the originals do not have.
    """
    check_fixed(where, own, FIXED[kind])
    numbers = tuple(
        read_value(where, own, key, int, clip if kind == "clip" else siglip)
        for key, clip, siglip in _KEYS
    )
    image, patch, width, _, heads, _ = numbers
    if width % heads or patch > image:
        raise InputError(
            f"{where}: hidden_size={width} must be a multiple of num_attention_heads={heads}, "
            f"patch_size={patch} at most image_size={image}"
        )
    return numbers


def _from_tensors(where: str, values: dict, shapes: Mapping[str, Shape]) -> tuple:
    """Return kind and sizes of a tower, as in `_PUBLISHED`, from the shapes of its tensors.

    Shapes do not tell the number of heads or the pixels that no patch covers: those of a published
    tower of the same sizes are taken, else heads are 64 wide (72 in SigLIP so400m).
    """
    name = values.get("mm_vision_tower") or ""
    own = {n.removeprefix(VISION): shape for n, shape in shapes.items() if n.startswith(VISION)}
    kind = "clip" if "embeddings.class_embedding" in own else "siglip"
    layers = {m[1] for n in own if (m := re.match(r"encoder\.layers\.(\d+)\.", n))}
    try:
        width, _, patch, _ = own["embeddings.patch_embedding.weight"]
        positions = own["embeddings.position_embedding.weight"][0] - (kind == "clip")
        mlp = own["encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError) as error:
        raise InputError(f"{where}: the tower's tensors are not those of CLIP or SigLIP") from error
    blocks = len(layers) + (kind == "siglip")  # SigLIP's last block is not stored
    grid = round(positions**0.5)
    for known, row in _PUBLISHED.items():
        sizes = (row[0], row[1] // row[2], *row[2:4], row[6])
        if sizes == (kind, grid, patch, width, mlp) and blocks in (row[4], row[4] + 1):
            if Path(name).name != Path(known).name:
                note(
                    f"{where}: mm_vision_tower={name!r} is no folder here; its tensors are {known}"
                )
            return row
    head = 64 if kind == "clip" or width in (768, 1024) or width % 72 else 72
    if grid**2 != positions or width % head or width in _OTHER_HEADS[kind]:
        raise InputError(
            f"{where}: mm_vision_tower={name!r} is no folder here, and a tower of width {width} "
            f"with {positions} positions cannot be told from its tensors; give --tower=DIR, its "
            "Hugging Face folder"
        )
    row = (kind, grid * patch, patch, width, blocks, width // head, mlp)
    note(
        f"{where}: mm_vision_tower={name!r} is no folder here; its tensors are taken for {kind} of "
        f"{row[1]} pixels, patches of {patch}, width {width}, {len(layers)} stored blocks, "
        f"{row[5]} heads, MLP width {mlp}"
    )
    return row


def published_name(tower: TowerConfig) -> str | None:
    """Return the published name of a tower of these dimensions."""
    numbers = (tower.image_size, tower.patch_size, tower.width, tower.layers + 1, tower.heads)
    row = (tower.kind, *numbers, tower.mlp_width)
    return next((name for name, known in _PUBLISHED.items() if known == row), None)


def tower_values(tower: TowerConfig, blocks: int) -> dict:
    """Return a tower's own `config.json`, with `blocks` blocks."""
    return {
        "model_type": f"{tower.kind}_vision_model",
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "hidden_size": tower.width,
        "num_hidden_layers": blocks,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_width,
        **FIXED[tower.kind],
    }
