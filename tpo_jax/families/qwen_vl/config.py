"""Configs of Qwen3-VL and Qwen2.5-VL, and the counts of visual tokens.

A frame of a batch is a pair of video frames at native aspect ratio: a header and a sequence of
patches, padded to the most that a run's `frame_tokens` allows. See `processing.py`.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tpo_jax.models.config import LATER, DecoderConfig, check_types

QWEN3, QWEN2_5 = "qwen3_vl", "qwen2_5_vl"  # kinds of towers, `model_type` of checkpoints
MERGE = 2  # patches a side that become one visual token
PAIR = 2  # frames of a patch
# Of the pixel normalisation, for values in [0, 1]; Qwen2.5-VL has CLIP's.
MEAN = {QWEN3: (0.5,) * 3, QWEN2_5: (0.48145466, 0.4578275, 0.40821073)}
STD = {QWEN3: (0.5,) * 3, QWEN2_5: (0.26862954, 0.26130258, 0.27577711)}
# Where positions of text continue after a video: after the longer side of a frame, or after its
# times, too.
TEXT_AFTER = ("side", "times")
# Sizes that only one kind of tower has; the other kind leaves them at 0 or ().
_OWN = {QWEN3: ("table",), QWEN2_5: ("window", "tokens_per_second")}
_BLOCKS = {QWEN3: "deepstack", QWEN2_5: "full_blocks"}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A vision tower over patch sequences of any shape."""

    kind: str  # `QWEN3` or `QWEN2_5`
    patch_size: int  # pixels
    width: int
    layers: int
    heads: int
    mlp_width: int
    table: int = 0  # Qwen3-VL: side of the learned position table
    deepstack: tuple[int, ...] = ()  # blocks whose output enters the first decoder layers
    # Qwen2.5-VL: visual tokens a side of a window, blocks whose attention is over the whole frame,
    # and how far positions in time are apart.
    window: int = dataclasses.field(default=0, metadata=LATER)
    full_blocks: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    tokens_per_second: int = dataclasses.field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if self.kind not in _OWN:
            raise ValueError(f"tower.kind must be one of {sorted(_OWN)}, not {self.kind!r}")
        sizes = ("patch_size", "width", "layers", "heads", "mlp_width", *_OWN[self.kind])
        for name in sizes:
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"tower.{name}={value!r} must be a positive integer")
        own = {*sizes, "kind", _BLOCKS[self.kind]}
        for field in dataclasses.fields(self):
            if field.name not in own and (value := getattr(self, field.name)):
                raise ValueError(f"tower.{field.name}={value!r}: {self.kind} has none")
        if self.width % (4 * self.heads):
            raise ValueError(f"tower.width={self.width} must be a multiple of 4 * {self.heads}")
        for name in _BLOCKS.values():
            blocks = getattr(self, name)
            if any(type(i) is not int or not 0 <= i < self.layers for i in blocks):
                raise ValueError(f"tower.{name} must name blocks below {self.layers}")
            if tuple(sorted(set(blocks))) != blocks:
                raise ValueError(f"tower.{name}={blocks} must ascend")

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
    """Qwen3-VL: tower, merger, decoder with positions in time, height and width.

    Pixel budgets are (least, most), like `size` of the published processors: for a video, over all
    its frames; for an image, over that image.
    """

    KIND: ClassVar[str] = QWEN3

    tower: TowerConfig
    decoder: DecoderConfig
    max_length: int = 262144  # tokens of prefix and answer together
    frame_tokens: int = 768  # most visual tokens of a pair of frames, and of an image
    video_pixels: tuple[int, int] = (4096, 25165824)
    image_pixels: tuple[int, int] = (65536, 16777216)
    time_instruction: str = "none"

    def __post_init__(self) -> None:
        check_types(self, "model")
        if self.tower.kind != self.KIND:
            raise ValueError(f"tower.kind must be {self.KIND!r}, not {self.tower.kind!r}")
        if self.time_instruction != "none":
            raise ValueError(f"{no_sentence(self.time_instruction)}; it must be 'none'")
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
    def text_after_times(self) -> bool:
        """Return whether text after a video stands behind the times of its frames, too."""
        return False

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
        """N as `Pictures` counts it: the visual tokens of a view."""
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

    def frame_pixels(self, num_frames: int) -> int:
        """Return the most pixels of a frame in a video of `num_frames`, as `cap_pixels_per_frame`
        in `video_processing_qwen3_vl.py` of `transformers`.
        """
        count, (least, most) = max(num_frames, PAIR), self.video_pixels
        share = min(self.frame_tokens * self.tower.token_side**2, most // count)
        return max(share, int(least * 1.05))

    def pair_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens of a pair of frames in a video of `num_frames` frames."""
        count = max(num_frames, PAIR)
        counted = min(count, round(count / PAIR) * PAIR)  # of five frames the processor counts four
        tokens = count * self.frame_pixels(count) // (counted * self.tower.token_side**2)
        return min(self.frame_tokens, max(1, tokens))

    def visual_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens of a video of at most `num_frames` frames.

        A shorter video may have more of them than the longest one: its pairs are larger.
        """
        count, area, (least, most) = pairs(num_frames), self.tower.token_side**2, self.video_pixels
        within = most // (PAIR * area) + self.frame_tokens  # an odd count may exceed by one pair
        floor = (count + 1) * max(int(least * 1.05), area) // area
        return min(count * self.frame_tokens, max(within, floor))

    def padded_index(self, index: np.ndarray, num_frames: int, padded: int) -> np.ndarray:
        """Return where visual tokens are, `pair * V + token`, given their places in the video.

        Args:
            index: int, visual tokens of the video, counted from 0; -1: none, stays.
            num_frames: pairs of frames, of one shape.
            padded: pairs, the empty ones after them included.
        """
        each = max(1, (int(index.max(initial=-1)) + 1) // max(1, num_frames))
        return np.where(index < 0, index, index // each * self.frame_tokens + index % each)


@dataclasses.dataclass(frozen=True)
class Qwen25VLConfig(QwenVLConfig):
    """Qwen2.5-VL: windows in the tower, the times of frames in positions.

    `video_pixels` are per frame, like `size` of `Qwen2VLVideoProcessor` in `transformers`.
    """

    KIND: ClassVar[str] = QWEN2_5
    max_length: int = 128000
    video_pixels: tuple[int, int] = (128 * 28**2, 768 * 28**2)
    image_pixels: tuple[int, int] = (4 * 28**2, 16384 * 28**2)
    video_tokens: int = 128000  # a video has at most nine tenths of these
    text_after: str = dataclasses.field(default=TEXT_AFTER[0], metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_after not in TEXT_AFTER:
            raise ValueError(f"model.text_after={self.text_after!r} must be one of {TEXT_AFTER}")

    @property
    def text_after_times(self) -> bool:
        """Return whether text after a video stands behind the times of its frames, too."""
        return self.text_after == "times"

    @property
    def frame_text(self) -> int:
        """Most text tokens beside a pair of frames; the two markers are around the whole video."""
        return 0

    def frame_pixels(self, num_frames: int) -> int:
        """Return the most pixels of a frame in a video of `num_frames`, as `cap_pixels_per_frame`
        in `video_processing_qwen2_vl.py` of `transformers`, and within `frame_tokens`.
        """
        area, (least, most) = self.tower.token_side**2, self.video_pixels
        share = min(most, int(self.video_tokens * area * 0.9) * PAIR // max(num_frames, 1))
        return min(max(share, int(least * 1.05)), self.frame_tokens * area)

    def pair_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens of a pair of frames in a video of `num_frames` frames."""
        return max(1, self.frame_pixels(num_frames) // self.tower.token_side**2)

    def visual_tokens(self, num_frames: int) -> int:
        """Return the most visual tokens of a video of at most `num_frames` frames.

        A shorter video may have more of them than the longest one: its pairs are larger.
        """
        count, least = pairs(num_frames), int(self.video_pixels[0] * 1.05)
        within = int(self.video_tokens * 0.9) + self.frame_tokens  # odd counts may exceed by a pair
        floor = count * (least // self.tower.token_side**2)
        return min(count * self.frame_tokens, max(within, floor))


def no_sentence(mode: str) -> str:
    """Return the beginning of the message that rejects the time instruction `mode`."""
    return f"time_instruction={mode!r}: this model is always told the times of frames"


def pairs(num_frames: int) -> int:
    """Return the number of pairs of `num_frames` frames; an odd last frame is doubled."""
    return -(-num_frames // PAIR)


def frame_flops(config: QwenVLConfig) -> tuple[int, int]:
    """Return the forward FLOPs of one padded pair of frames: of the tower, and of the mergers."""
    t, D, N = config.tower, config.decoder.width, config.patches
    W, merged = t.width, MERGE**2 * t.width
    windowed = t.layers - len(t.full_blocks) if t.window else 0
    products = (2 if t.kind == QWEN3 else 3) * W * t.mlp_width
    keys = (t.layers - windowed) * N + windowed * min(N, (MERGE * t.window) ** 2)
    merger = 2 * config.frame_tokens * (merged**2 + merged * D)
    tower = 2 * N * (t.layers * (4 * W**2 + products) + 2 * keys * W + W * t.patch_pixels)
    return tower, merger * (1 + len(t.deepstack))


def from_dict(kind: type[QwenVLConfig], values: dict) -> QwenVLConfig:
    """Return the config, of the given class, that `dataclasses.asdict` made these values of.

    Raises:
        ValueError: a field is missing, unknown or out of range.
    """
    try:
        tower = TowerConfig(**_tuples(values["tower"]))
        decoder = DecoderConfig(**values["decoder"])
        return kind(**_tuples({**values, "tower": tower, "decoder": decoder}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a model config: {error}") from error


def _tuples(values: dict) -> dict:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def benchmark_frames(config: Any) -> dict[str, int]:
    """Return the frames of the published evaluation by benchmark: those of the benchmarks."""
    return {}
