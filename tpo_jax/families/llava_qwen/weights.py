"""Names of the weights of LongVA, LLaVA-Video and LLaVA-OneVision checkpoints."""

import re
from collections.abc import Mapping

from tpo_jax.families.llava_qwen.config import LlavaQwenConfig
from tpo_jax.families.weights import (
    DECODER,
    DECODER_LAYER,
    DECODER_LAYERS,
    EMBEDDING,
    HEAD,
    Shape,
    Weights,
    leaves,
    linear,
    norm,
)

VISION = "model.vision_tower.vision_tower.vision_model."
CONNECTOR = "mm_projector"

# Prefixes of names in `transformers`, in its files and in its modules, to ours.
_SPELLINGS = {
    "model.vision_tower.vision_tower.vision_model.": VISION,
    "model.vision_tower.vision_tower.": VISION,
    "vision_tower.vision_model.": VISION,
    "vision_tower.": VISION,
    "model.vision_tower.vision_model.": VISION,
    "model.vision_tower.": VISION,
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "multi_modal_projector.linear_1.": f"model.{CONNECTOR}.0.",
    "multi_modal_projector.linear_2.": f"model.{CONNECTOR}.2.",
    "model.multi_modal_projector.linear_1.": f"model.{CONNECTOR}.0.",
    "model.multi_modal_projector.linear_2.": f"model.{CONNECTOR}.2.",
    "image_newline": "model.image_newline",
}
# Prefixes in the published files; the decoder's, ours for which is the shortest, comes last.
_PUBLISHED = (
    "vision_tower.vision_model.",
    "multi_modal_projector.linear_1.",
    "multi_modal_projector.linear_2.",
    "image_newline",
    "language_model.lm_head.",
    "language_model.model.",
)

_TOWER_LAYER = {
    **norm("norm1", "layer_norm1"),
    **norm("norm2", "layer_norm2"),
    **linear("q", "self_attn.q_proj"),
    **linear("k", "self_attn.k_proj"),
    **linear("v", "self_attn.v_proj"),
    **linear("out", "self_attn.out_proj"),
    **linear("fc1", "mlp.fc1"),
    **linear("fc2", "mlp.fc2"),
}
_SINGLE = {
    **DECODER,
    "newline": ("model.image_newline", "same"),
    **linear("projector/fc1", f"model.{CONNECTOR}.0"),
    **linear("projector/fc2", f"model.{CONNECTOR}.2"),
    "tower/class_token": (f"{VISION}embeddings.class_embedding", "same"),
    "tower/position": (f"{VISION}embeddings.position_embedding.weight", "same"),
    "tower/patch/kernel": (f"{VISION}embeddings.patch_embedding.weight", "patch"),
    "tower/patch/bias": (f"{VISION}embeddings.patch_embedding.bias", "same"),
    **norm("tower/pre_norm", f"{VISION}pre_layrnorm"),  # the spelling of `transformers`
}
_STACKS = {
    "decoder/layers/": (DECODER_LAYERS, DECODER_LAYER),
    "tower/layers/": (f"{VISION}encoder.layers.", _TOWER_LAYER),
}


def canonical(name: str) -> str:
    """Return the name in `weights` of a tensor that is stored as `name`."""
    for theirs, ours in _SPELLINGS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def transformers_name(name: str) -> str:
    """Return the name of a tensor of `weights` in files of `transformers`."""
    theirs = next(theirs for theirs in _PUBLISHED if name.startswith(_SPELLINGS[theirs]))
    return theirs + name.removeprefix(_SPELLINGS[theirs])


def weights(config: LlavaQwenConfig, shapes: Mapping[str, Shape]) -> Weights:
    """Return the tensors of a checkpoint.

    The tower's post-norm and CLIP's last block are among them: the original modules own them
    although no output depends on them.

    Args:
        shapes: of all parameters by path.
    """
    tower, rows = config.tower, leaves(shapes, _SINGLE, _STACKS)
    tensors: dict[str, Shape] = {}
    for path, leaf in rows.items():
        tensors |= dict.fromkeys(leaf.names, leaf.shape)
        if tower.kind == "clip" and path.startswith("tower/layers/"):
            tensors[leaf.names[0].replace("layers.0.", f"layers.{tower.layers}.")] = leaf.shape
    for name in ("weight", "bias"):
        tensors[f"{VISION}post_layernorm.{name}"] = (tower.width,)
    copies = {HEAD: EMBEDDING} if config.decoder.tied else {}
    return Weights(rows, tensors, _ignorable(config), copies)


def _ignorable(config: LlavaQwenConfig) -> re.Pattern[str]:
    """Return the names of tensors that original checkpoints may hold and no output depends on."""
    vision = re.escape(VISION)
    names = [rf"{vision}embeddings\.position_ids", r"model\.vision_resampler\..*"]
    names.append(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
    if config.tower.kind == "siglip":
        names += [rf"{vision}encoder\.layers\.{config.tower.layers}\..*", rf"{vision}head\..*"]
    if not config.has_newline:
        names.append(r"model\.image_newline")
    return re.compile("|".join(names))
