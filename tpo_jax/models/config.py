"""The decoder's config, and the interface of every family's model config."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.io.files import as_json


def check_types(config: Any, name: str) -> None:
    """Raise ValueError unless text fields hold text, numbers positive numbers, and flags booleans.

    Args:
        config: a dataclass instance; fields of other types are not checked.
        name: what the message calls it.
    """
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type
        if kind is bool and type(value) is not bool:
            raise ValueError(f"{name}.{field.name}={value!r} must be true or false")
        if kind not in (str, int, float):
            continue
        right = isinstance(value, (int, float) if kind is float else kind)
        if isinstance(value, bool) or not right or (kind is not str and not 0 < value < math.inf):
            expected = {str: "a text", int: "a positive integer", float: "a positive number"}[kind]
            raise ValueError(f"{name}.{field.name}={value!r} must be {expected}")


# Metadata of fields that the first stored keys did not have yet; see `key_of`.
LATER = {"later": True}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 or Qwen3 decoder: grouped queries, gated SiLU MLP."""

    vocab_size: int  # W
    width: int  # D
    layers: int  # L
    heads: int  # H
    kv_heads: int  # K
    head_dim: int  # C
    mlp_width: int
    rope_theta: float
    norm_eps: float = 1e-6
    tied: bool = False  # the head is the transposed embedding: one table, one gradient
    # Qwen2's; Qwen3 has none.
    qkv_bias: bool = dataclasses.field(default=True, metadata=LATER)
    # Qwen3's: an RMSNorm over C of every query and key.
    qk_norm: bool = dataclasses.field(default=False, metadata=LATER)
    # Numbers of wavelengths that turn with the time, the height and the width of visual tokens, and
    # whether they are interleaved; see `models.rotary`. Empty: tokens have one position.
    rope_sections: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    rope_interleaved: bool = dataclasses.field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        check_types(self, "decoder")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"decoder.heads={self.heads} is no multiple of kv_heads={self.kv_heads}"
            )
        object.__setattr__(self, "rope_sections", tuple(self.rope_sections))  # JSON has lists
        sections = self.rope_sections
        if sections and (len(sections) != 3 or 2 * sum(sections) != self.head_dim):
            raise ValueError(
                f"decoder.rope_sections={sections} must be three numbers that sum to half of "
                f"head_dim={self.head_dim}"
            )


class ModelConfig(Protocol):
    """What every family's config has: a frozen dataclass, hashable, with these members.

    Frames reach the model as uint8 `[F, *frame_shape]`; how many tokens they become depends on
    the family.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...

    @property
    def decoder(self) -> DecoderConfig:
        """The shared decoder's config."""

    @property
    def max_length(self) -> int:
        """Most tokens of prefix and answer together."""

    @property
    def time_instruction(self) -> str:
        """The sentence on frame times that the checkpoint was trained with: none, inline or
        newline.
        """

    def batch_frames(self, num_frames: int) -> int:
        """Return F, the frames of a batch that hold a video of `num_frames` frames."""

    @property
    def frame_text(self) -> int:
        """Most text tokens that a prompt has beside each frame of a batch."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a frame of a batch, or of a view of an image: `(S, S, 3)`, or a family's
        own.
        """

    @property
    def patches_per_frame(self) -> int:
        """N, patches of a frame or view before pooling."""

    @property
    def tokens_per_frame(self) -> int:
        """V, visual tokens of one frame."""

    def visual_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens that a video of at most `num_frames` frames has in the
        prefix.
        """

    def padded_index(self, index: np.ndarray, num_frames: int, padded: int) -> np.ndarray:
        """Return the indices of a video's visual tokens once empty frames are appended to it.

        Args:
            index: int, visual tokens of the video, counted from 0; -1: none, stays.
            padded: frames, the empty ones included.
        """


def key_of(config: ModelConfig) -> dict[str, Any]:
    """Return a config's fields for keys that are compared with stored ones, as JSON reads them.

    Fields that were added later, to it or to its parts, are left out at their defaults: they change
    no number, and keys that were stored before them still match.
    """
    values = as_json(config)
    parts = {name: part for name, part in vars(config).items() if dataclasses.is_dataclass(part)}
    for part, written in [(config, values), *((x, values[name]) for name, x in parts.items())]:
        for field in dataclasses.fields(part):
            if field.metadata == LATER and getattr(part, field.name) == field.default:
                del written[field.name]
    return values


def most_frames(fits: Callable[[list[float]], bool], timestamps: Sequence[float]) -> int:
    """Return the most frames of a video that fit; 0 where not even one does.

    Fewer frames also shorten the time instruction, so rows are built and measured.

    Args:
        fits: whether a row with frames at these times, seconds, fits. More frames make it longer.
        timestamps: of the frames that do not fit; fewer ones span the same time, evenly.
    """
    evenly = functools.partial(np.linspace, timestamps[0], timestamps[-1])
    counts = range(1, len(timestamps))
    return bisect.bisect_left(counts, True, key=lambda n: not fits(evenly(n).tolist()))


def check_source(checkpoint: str, preset: str) -> None:
    """Raise InputError unless exactly one of `model.checkpoint` and `model.preset` is given."""
    if bool(checkpoint) == bool(preset):
        raise InputError("give one of model.checkpoint and model.preset")
