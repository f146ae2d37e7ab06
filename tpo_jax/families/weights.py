"""Names of a family's weights in published checkpoints, and where each parameter comes from."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
Rename = Callable[[str], str | None]  # of stored tensors; None: not part of the model
Rules = dict[str, tuple[str, str]]  # parameter path -> (PyTorch name, kind of `Leaf`)


class Leaf(NamedTuple):
    """Where a parameter is stored: one tensor, or one for each of the stacked layers.

    `kind` is `same`; `transposed`, `[out, in]` to `[in, out]`; `patch`, the kernel `[D, 3, p, p]`
    of a convolution with stride `p` to `[p * p * 3, D]`; or `frame_pair`, the kernel
    `[D, 3, 2, p, p]` of one over two frames to `[3 * 2 * p * p, D]`.
    """

    names: tuple[str, ...]
    stacked: bool
    kind: str
    shape: Shape  # of one tensor, as PyTorch has it


@dataclasses.dataclass(frozen=True)
class Weights:
    """All tensors of a checkpoint."""

    leaves: dict[str, Leaf]  # by parameter path
    # Shape of every tensor a checkpoint has to hold, in the order of a new file's; those without a
    # parameter belong to the original modules although no output depends on them.
    tensors: dict[str, Shape]
    ignorable: re.Pattern[str]  # names of other tensors that may be there
    # Tensors that may be stored although they equal another: a tied head to the embedding.
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)


def linear(path: str, name: str) -> Rules:
    """Return the rules of a linear layer."""
    return {
        f"{path}/kernel": (f"{name}.weight", "transposed"),
        f"{path}/bias": (f"{name}.bias", "same"),
    }


def norm(path: str, name: str) -> Rules:
    """Return the rules of a norm with scale and bias."""
    return {f"{path}/scale": (f"{name}.weight", "same"), f"{path}/bias": (f"{name}.bias", "same")}


# The shared decoder under the names of `transformers`' Qwen2ForCausalLM and Qwen3ForCausalLM.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DECODER: Rules = {
    "decoder/embed/embedding": (EMBEDDING, "same"),
    "decoder/norm/scale": ("model.norm.weight", "same"),
    "decoder/head/kernel": (HEAD, "transposed"),
}
DECODER_LAYERS = "model.layers."
DECODER_LAYER: Rules = {
    f"{ours}/{leaf}": rule
    for ours, theirs in {
        **{name: f"self_attn.{name}_proj" for name in "qkvo"},
        **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        **{name: f"self_attn.{name}" for name in ("q_norm", "k_norm")},
        "input_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }.items()
    for leaf, rule in {
        "kernel": (f"{theirs}.weight", "transposed"),
        "bias": (f"{theirs}.bias", "same"),
        "scale": (f"{theirs}.weight", "same"),
    }.items()
}


def leaves(
    shapes: Mapping[str, Shape], single: Rules, stacks: Mapping[str, tuple[str, Rules]]
) -> dict[str, Leaf]:
    """Return a `Leaf` for every parameter.

    Args:
        shapes: shape of every parameter by path, as in `families.abstract_params`.
        single: rules of parameters that are one tensor, by path.
        stacks: for stacked layers, by the prefix of their paths: the prefix of the PyTorch names,
            up to the number of the layer, and the rules of one layer.

    Raises:
        KeyError: a parameter without a rule.
    """
    rows = {}
    for path, shape in shapes.items():
        stack = next((prefix for prefix in stacks if path.startswith(prefix)), None)
        if stack is None:
            name, kind = single[path]
            rows[path] = Leaf((name,), False, kind, _torch_shape(shape, kind))
        else:
            before, layer = stacks[stack]
            name, kind = layer[path.removeprefix(stack)]
            names = tuple(f"{before}{i}.{name}" for i in range(shape[0]))
            rows[path] = Leaf(names, True, kind, _torch_shape(shape[1:], kind))
    return rows


def _torch_shape(shape: Shape, kind: str) -> Shape:
    if kind == "patch":
        side = math.isqrt(shape[0] // 3)
        return (shape[1], 3, side, side)
    if kind == "frame_pair":
        side = math.isqrt(shape[0] // 6)
        return (shape[1], 3, 2, side, side)
    return shape[::-1] if kind == "transposed" else shape


def to_torch(leaf: Leaf, values: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tensors of a parameter, one for each of `leaf.names`."""
    for part in values if leaf.stacked else (values,):
        if leaf.kind == "patch":
            D, channels, p, _ = leaf.shape
            part = part.reshape(p, p, channels, D).transpose(3, 2, 0, 1)
        if leaf.kind == "frame_pair":
            part = part.T.reshape(leaf.shape)
        yield part.T if leaf.kind == "transposed" else part


def from_torch(leaf: Leaf, tensor: np.ndarray) -> np.ndarray:
    """Return the parameter, or one layer of it, from one of a leaf's tensors."""
    if leaf.kind == "patch":
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    if leaf.kind == "frame_pair":
        return tensor.reshape(len(tensor), -1).T
    return tensor.T if leaf.kind == "transposed" else tensor
