"""Configs of Qwen3-VL, their presets, and where visual tokens are counted.

A frame of a batch is a pair of video frames at native aspect ratio: a header and a sequence of
patches, padded to the most that a run's `frame_tokens` allows. See `processing.py`.
"""

import dataclasses
from typing import Any

import numpy as np

from tpo_jax.models.config import DecoderConfig, check_types

KIND = "qwen3_vl"
MERGE = 2  # patches a side that become one visual token
PAIR = 2  # frames of a patch
MEAN = STD = (0.5, 0.5, 0.5)  # of the pixel normalisation, of values in [0, 1]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A vision tower over patch sequences of any shape."""

    kind: str  # `KIND`
    patch_size: int  # pixels
    width: int
    layers: int
    heads: int
    mlp_width: int
    table: int  # side of the learned position table
    deepstack: tuple[int, ...] = ()  # blocks whose output enters the first decoder layers

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "layers", "heads", "mlp_width", "table"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"tower.{name}={value!r} must be a positive integer")
        if self.kind != KIND:
            raise ValueError(f"tower.kind must be {KIND!r}, not {self.kind!r}")
        if self.width % (4 * self.heads):
            raise ValueError(f"tower.width={self.width} must be a multiple of 4 * {self.heads}")
        if any(type(i) is not int or not 0 <= i < self.layers for i in self.deepstack):
            raise ValueError(f"tower.deepstack must name blocks below {self.layers}")
        if tuple(sorted(set(self.deepstack))) != self.deepstack:
            raise ValueError(f"tower.deepstack={self.deepstack} must ascend")

    @property
    def patch_pixels(self) -> int:
        """Values of a patch: colours, two frames, rows, columns."""
        return 3 * PAIR * self.patch_size**2

    @property
    def token_side(self) -> int:
        """Side of a visual token, pixels."""
        return MERGE * self.patch_size


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """A video language model: tower, merger, decoder with positions in time, height and width.

    Pixel budgets are least and most, as `size` of the published processors: of a video over all
    frames, of an image for itself.
    """

    tower: TowerConfig
    decoder: DecoderConfig
    max_length: int = 262144  # tokens of prefix and answer together
    frame_tokens: int = 768  # most visual tokens of a pair of frames, and of an image
    video_pixels: tuple[int, int] = (4096, 25165824)
    image_pixels: tuple[int, int] = (65536, 16777216)
    time_instruction: str = "none"

    def __post_init__(self) -> None:
        check_types(self, "model")
        if self.time_instruction != "none":
            raise ValueError(
                f"time_instruction={self.time_instruction!r}: prompts of this model always name "
                "the times of frames; it must be 'none'"
            )
        for name in ("video_pixels", "image_pixels"):
            least, most = getattr(self, name)
            if not 0 < least <= most:
                raise ValueError(f"model.{name}={[least, most]} must be least and most, above 0")
            if most < self.tower.token_side**2:
                raise ValueError(
                    f"model.{name}: {most} pixels are less than one visual token of "
                    f"{self.tower.token_side}x{self.tower.token_side}"
                )

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Shape of a pair of frames: a header and the patches, `(1 + N, patch_pixels)`."""
        return 1 + self.patches, self.tower.patch_pixels

    @property
    def patches(self) -> int:
        """N, most patches of a pair of frames."""
        return MERGE**2 * self.frame_tokens

    @property
    def patches_per_frame(self) -> int:
        """Entries of a view that `Pictures` count: its visual tokens."""
        return self.frame_tokens

    @property
    def tokens_per_frame(self) -> int:
        """V, most visual tokens of a pair of frames."""
        return self.frame_tokens

    @property
    def frame_text(self) -> int:
        """Most text tokens beside a pair of frames: vision markers and `<12345.6 seconds>`."""
        return 12

    def batch_frames(self, num_frames: int) -> int:
        """Return the pairs of a video of `num_frames` frames."""
        return pairs(num_frames)

    def budget(self, num_frames: int) -> int:
        """Return the most pixels of a video, all frames together, as `cap_pixels_per_frame` in
        `video_processing_qwen3_vl.py` of `transformers`.
        """
        count, (least, most) = max(num_frames, PAIR), self.video_pixels
        share = min(self.frame_tokens * self.tower.token_side**2, most // count)
        return count * max(share, int(least * 1.05))

    def pair_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens of a pair of frames in a video of `num_frames` frames."""
        count = max(num_frames, PAIR)
        counted = min(count, round(count / PAIR) * PAIR)  # of five frames the processor counts four
        tokens = self.budget(count) // (counted * self.tower.token_side**2)
        return min(self.frame_tokens, max(1, tokens))

    def visual_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens of a video of at most `num_frames` frames.

        A shorter video may have more of them than the longest one: its pairs are larger.
        """
        count, area, (least, most) = pairs(num_frames), self.tower.token_side**2, self.video_pixels
        within = most // (PAIR * area) + self.frame_tokens  # an odd video may pass by one pair
        floor = (count + 1) * max(int(least * 1.05), area) // area
        return min(count * self.frame_tokens, max(within, floor))

    def padded_index(self, index: np.ndarray, num_frames: int, padded: int) -> np.ndarray:
        """Return where visual tokens are, `pair * V + token`, given their places in the video.

        Args:
            index: int, visual tokens of the video, counted from 0; -1: none, stays.
            num_frames: pairs of frames, of one shape.
            padded: pairs with empty ones after them.
        """
        each = max(1, (int(index.max(initial=-1)) + 1) // max(1, num_frames))
        return np.where(index < 0, index, index // each * self.frame_tokens + index % each)


def pairs(num_frames: int) -> int:
    """Return the pairs of a video of `num_frames` frames; the last frame of an odd one doubles."""
    return -(-num_frames // PAIR)


def frame_flops(config: QwenVLConfig) -> tuple[int, int]:
    """Return the forward FLOPs of one padded pair of frames: of the tower, and of the mergers."""
    t, D, N = config.tower, config.decoder.width, config.patches
    W, merged = t.width, MERGE**2 * t.width
    block = 2 * N * (4 * W**2 + 2 * W * t.mlp_width) + 4 * N**2 * W
    merger = 2 * config.frame_tokens * (merged**2 + merged * D)
    tower = t.layers * block + 2 * N * W * t.patch_pixels
    return tower, merger * (1 + len(t.deepstack))


def from_dict(values: dict) -> QwenVLConfig:
    """Return the config that `dataclasses.asdict` made these values of.

    Raises:
        ValueError: a field is missing, unknown or out of range.
    """
    try:
        tower = TowerConfig(**_tuples(values["tower"]))
        decoder = DecoderConfig(**values["decoder"])
        return QwenVLConfig(**_tuples({**values, "tower": tower, "decoder": decoder}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a model config: {error}") from error


def _tuples(values: dict) -> dict:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _qwen3(width: int, layers: int, heads: int, mlp_width: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=151936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp_width=mlp_width,
        rope_theta=5e6,
        tied=tied,
        qkv_bias=False,
        qk_norm=True,
        rope_sections=(24, 20, 20),
        rope_interleaved=True,
    )


_SMALL = TowerConfig(KIND, 16, 1024, 24, 16, 4096, table=48, deepstack=(5, 11, 17))
_LARGE = TowerConfig(KIND, 16, 1152, 27, 16, 4304, table=48, deepstack=(8, 16, 24))

PRESETS: dict[str, QwenVLConfig] = {
    "qwen3_vl_2b": QwenVLConfig(_SMALL, _qwen3(2048, 28, 16, 6144, tied=True)),
    "qwen3_vl_4b": QwenVLConfig(_SMALL, _qwen3(2560, 36, 32, 9728, tied=True)),
    "qwen3_vl_8b": QwenVLConfig(_LARGE, _qwen3(4096, 36, 32, 12288, tied=False)),
    "qwen3_vl_32b": QwenVLConfig(_LARGE, _qwen3(5120, 64, 64, 25600, tied=False)),
    "tiny_qwen3_vl": QwenVLConfig(
        TowerConfig(KIND, 8, 96, 2, 4, 192, table=4, deepstack=(0,)),
        DecoderConfig(
            vocab_size=512,
            width=128,
            layers=3,
            heads=4,
            kv_heads=2,
            head_dim=32,
            mlp_width=256,
            rope_theta=1e4,
            qkv_bias=False,
            qk_norm=True,
            rope_sections=(6, 5, 5),
            rope_interleaved=True,
        ),
        max_length=2048,
        frame_tokens=4,
        video_pixels=(256, 65536),
        image_pixels=(256, 65536),
    ),
}
# Every published checkpoint of this family is bfloat16.
PRESET_DTYPES = {name: "float32" if name.startswith("tiny") else "bfloat16" for name in PRESETS}


def benchmark_frames(config: Any) -> dict[str, int]:
    """Return the frames of the published evaluation by benchmark: those of the benchmarks."""
    return {}
