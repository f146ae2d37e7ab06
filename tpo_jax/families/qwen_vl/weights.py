"""Names of the weights of Qwen3-VL and Qwen2.5-VL checkpoints, as `transformers` writes them."""

import re
from collections.abc import Mapping

from tpo_jax.families import weights as shared
from tpo_jax.families.qwen_vl.config import QWEN2_5, QWEN3, QwenVLConfig
from tpo_jax.families.weights import Leaf, Rules, Shape, Weights, leaves, linear, norm

VISION, DECODER = "model.visual.", "model.language_model."
CONNECTOR = "merger"


def _of_decoder(name: str) -> str:
    """Return the name here of a tensor of the shared decoder."""
    return DECODER + name.removeprefix("model.") if name.startswith("model.") else name


EMBEDDING, HEAD = _of_decoder(shared.EMBEDDING), shared.HEAD
# Prefixes of names in files of all versions of `transformers`, to ours.
_SPELLINGS = {
    VISION: VISION,
    DECODER: DECODER,
    "visual.": VISION,
    "language_model.model.": DECODER,
    "language_model.lm_head.": "lm_head.",
    "model.": DECODER,
}


def _merger(path: str, name: str) -> Rules:
    return {
        **norm(f"{path}norm", f"{name}norm"),
        **linear(f"{path}fc1", f"{name}linear_fc1"),
        **linear(f"{path}fc2", f"{name}linear_fc2"),
    }


_ATTENTION = {
    **norm("norm1", "norm1"),
    **linear("qkv", "attn.qkv"),
    **linear("out", "attn.proj"),
    **norm("norm2", "norm2"),
}
_MLP = {
    QWEN3: {**linear("fc1", "mlp.linear_fc1"), **linear("fc2", "mlp.linear_fc2")},
    QWEN2_5: {
        **linear("fc1", "mlp.up_proj"),
        **linear("gate", "mlp.gate_proj"),
        **linear("fc2", "mlp.down_proj"),
    },
}
_MERGER = {
    QWEN3: _merger("projector/", f"{VISION}{CONNECTOR}."),
    QWEN2_5: {
        "projector/norm/scale": (f"{VISION}{CONNECTOR}.ln_q.weight", "same"),
        **linear("projector/fc1", f"{VISION}{CONNECTOR}.mlp.0"),
        **linear("projector/fc2", f"{VISION}{CONNECTOR}.mlp.2"),
    },
}
_SINGLE = {
    **{path: (_of_decoder(name), kind) for path, (name, kind) in shared.DECODER.items()},
    "tower/patch/kernel": (f"{VISION}patch_embed.proj.weight", "frame_pair"),
    "tower/patch/bias": (f"{VISION}patch_embed.proj.bias", "same"),
    "tower/position": (f"{VISION}pos_embed.weight", "same"),
}
_STACKS = {
    "decoder/layers/": (f"{DECODER}layers.", shared.DECODER_LAYER),
    "deepstack/": (f"{VISION}deepstack_merger_list.", _merger("", "")),
}


def rules(kind: str, shapes: Mapping[str, Shape]) -> dict[str, Leaf]:
    """Return where parameters are stored, by path.

    Args:
        kind: of the tower.
        shapes: of the parameters by path.
    """
    blocks = f"{VISION}blocks.", {**_ATTENTION, **_MLP[kind]}
    return leaves(shapes, {**_SINGLE, **_MERGER[kind]}, {**_STACKS, "tower/layers/": blocks})


def canonical(name: str) -> str:
    """Return the name in `weights` of a tensor that is stored as `name`."""
    for theirs, ours in _SPELLINGS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def weights(config: QwenVLConfig, shapes: Mapping[str, Shape]) -> Weights:
    """Return the tensors of a checkpoint, and which parameter each one is.

    Args:
        shapes: of all parameters by path.
    """
    rows = rules(config.tower.kind, shapes)
    tensors = {name: leaf.shape for leaf in rows.values() for name in leaf.names}
    copies = {HEAD: EMBEDDING} if config.decoder.tied else {}
    return Weights(rows, tensors, re.compile(r".*rotary_(pos_)?emb\.inv_freq"), copies)
