"""Configs of LongVA, LLaVA-Video and LLaVA-OneVision, their presets, and the counts of tokens.

LongVA: CLIP ViT-L/14-336, average pooling, no newline tokens. LLaVA-Video: SigLIP so400m/14-384,
one newline token after every pooled row. LLaVA-OneVision: the same tower, bilinear pooling, one
newline token after the whole video.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from tpo_jax.models.config import DecoderConfig, check_types

POOLINGS = ("average", "max", "bilinear")
NEWLINES = ("grid", "frame", "one_token", "no_token")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A CLIP or SigLIP vision tower; `layers` counts the blocks that are run and stored.

    CLIP drops its last block (`mm_vision_select_layer` -2) and the class token; SigLIP drops its
    last block and never applies the post-norm. The output is `[N, width]` per frame, rows first.
    """

    kind: str  # "clip" or "siglip"
    image_size: int  # S, pixels
    patch_size: int  # pixels
    width: int
    layers: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        check_types(self, "tower")
        if self.width % self.heads or self.patch_size > self.image_size:
            raise ValueError(
                f"tower.width={self.width} must be a multiple of heads={self.heads}, "
                f"patch_size={self.patch_size} at most image_size={self.image_size}"
            )
        if self.kind not in ("clip", "siglip"):
            raise ValueError(f"tower.kind must be 'clip' or 'siglip', not {self.kind!r}")

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per-channel mean of the pixel normalisation, of values in [0, 1]."""
        return CLIP_MEAN if self.kind == "clip" else (0.5, 0.5, 0.5)

    @property
    def std(self) -> tuple[float, float, float]:
        """Per-channel standard deviation of the pixel normalisation, of values in [0, 1]."""
        return CLIP_STD if self.kind == "clip" else (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What `config.json` says about still images; `images.py` uses it."""

    merge: str  # mm_patch_merge_type
    aspect: str  # image_aspect_ratio: anyres, anyres_max_N, pad or square
    pinpoints: tuple[tuple[int, int], ...] = ()  # image_grid_pinpoints: widths, heights in pixels
    several: str = ""  # aspect where a question has several images; "": as for one

    def __post_init__(self) -> None:
        check_types(self, "stills")


def unires(side: int) -> ImageConfig:
    """Return LongVA's config: every image is a video of up to 49 tiles of `side` pixels."""
    grids = [(a, b) for a in range(1, 50) for b in range(1, 50) if 1 < a * b <= 49]
    return ImageConfig("unires", "anyres", tuple((a * side, b * side) for a, b in grids))


def spatial_unpad(side: int, newline: str = "grid") -> ImageConfig:
    """Return LLaVA-Video's config: up to 6x6 tiles of `side` pixels, shrunk to the tokens of nine.

    LLaVA-OneVision, which has one newline token after a video, pads each of several images to a
    square (`LazySupervisedDataset` in `llava/train/train.py` of LLaVA-NeXT).
    """
    grids = [(a, b) for a in range(1, 7) for b in range(1, 7)]
    pinpoints = tuple((a * side, b * side) for a, b in grids)
    several = "pad" if newline == "one_token" else ""
    return ImageConfig("spatial_unpad", "anyres_max_9", pinpoints, several)


def pinpoints(given: Any, side: int) -> tuple[tuple[int, int], ...]:
    """Return the (width, height) pairs of `image_grid_pinpoints`, in pixels.

    Args:
        given: `[[336, 672], ...]`, the same as text, or `(1x1),...,(6x6)` in tiles.
        side: of a tile, pixels.

    Raises:
        ValueError: another spelling.
    """
    scale = 1
    if isinstance(given, str):
        scale = side if "x" in given else 1
        pairs = re.findall(r"[(\[]\s*(\d+)\s*[,x]\s*(\d+)\s*[)\]]", given)
        numbers = [(int(width), int(height)) for width, height in pairs]
        if "..." in given and len(numbers) == 2:
            (a, b), (c, d) = numbers
            numbers = [(w, h) for w in range(a, c + 1) for h in range(b, d + 1)]
        given = numbers or given
    pairs = [] if given is None else given
    good = isinstance(pairs, list) and all(
        isinstance(pair, (list, tuple)) and [type(x) for x in pair] == [int, int] for pair in pairs
    )
    if not good:
        raise ValueError(f"image_grid_pinpoints={given!r} must be a list of [width, height]")
    return tuple((width * scale, height * scale) for width, height in pairs)


@dataclasses.dataclass(frozen=True)
class LlavaQwenConfig:
    """A video language model: tower, two-layer projector, frame pooling, newline tokens,
    decoder.
    """

    tower: TowerConfig
    decoder: DecoderConfig
    pooling: str = "average"
    newline: str = "no_token"
    max_length: int = 32768  # tokens of prefix and answer together
    time_instruction: str = "none"  # what `config.json` asks for: none, inline or newline
    stills: ImageConfig | None = None  # None: the published ones for `newline`

    def __post_init__(self) -> None:
        check_types(self, "model")
        if self.pooling not in POOLINGS:
            raise ValueError(f"model.pooling must be one of {POOLINGS}, not {self.pooling!r}")
        if self.newline not in NEWLINES:
            raise ValueError(f"model.newline must be one of {NEWLINES}, not {self.newline!r}")

    @property
    def images(self) -> ImageConfig:
        """How still images are cut and their features merged."""
        side = self.tower.image_size
        published = spatial_unpad(side, self.newline) if self.has_newline else unires(side)
        return self.stills or published

    @property
    def pooled_grid(self) -> int:
        """Side of a frame's grid after 2x2 pooling: 12 for LongVA, 13 or 14 for SigLIP."""
        if self.pooling == "bilinear":
            return math.ceil(self.tower.grid / 2)
        return self.tower.grid // 2

    @property
    def tokens_per_frame(self) -> int:
        """V, newline tokens of the frame included."""
        side = self.pooled_grid
        return side * side + {"grid": side, "frame": 1}.get(self.newline, 0)

    @property
    def has_newline(self) -> bool:
        """Whether the model owns a learned newline vector."""
        return self.newline != "no_token"

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape of a preprocessed frame, `(S, S, 3)`."""
        return self.tower.image_size, self.tower.image_size, 3

    @property
    def patches_per_frame(self) -> int:
        """N, patches of a frame before pooling."""
        return self.tower.grid**2

    frame_text = 0  # times are one sentence for the whole video

    def batch_frames(self, num_frames: int) -> int:
        """Return the number of frames of a batch that hold a video: one for each of its frames."""
        return num_frames

    def visual_tokens(self, num_frames: int) -> int:
        """Return the number of visual tokens of a video of `num_frames` frames."""
        return num_frames * self.tokens_per_frame + (self.newline == "one_token")

    def padded_index(self, index: np.ndarray, num_frames: int, padded: int) -> np.ndarray:
        """Return the indices of visual tokens once empty frames are appended to the video.

        A newline token after the whole video comes after the empty frames, too.
        """
        V = self.tokens_per_frame
        return np.where(index >= num_frames * V, index + (padded - num_frames) * V, index)


def frame_flops(config: LlavaQwenConfig) -> tuple[int, int]:
    """Return the forward FLOPs of one frame: of the tower, and of the projector."""
    t, D = config.tower, config.decoder.width
    N, W = t.grid**2, t.width
    block = 2 * N * (4 * W**2 + 2 * W * t.mlp_width) + 4 * N**2 * W
    return t.layers * block + 2 * N * W * 3 * t.patch_size**2, 2 * N * (W * D + D * D)


def benchmark_frames(config: LlavaQwenConfig) -> dict[str, int]:
    """Return the frames per video of the paper's evaluation, by benchmark, where models differ."""
    return {"videomme": 96} if config.tower.kind == "siglip" else {}


def from_dict(values: dict) -> LlavaQwenConfig:
    """Return the config that `dataclasses.asdict` made these values of.

    Raises:
        ValueError: a field is missing, unknown or out of range.
    """
    try:
        tower = TowerConfig(**values["tower"])
        parts: dict[str, Any] = {"tower": tower, "decoder": DecoderConfig(**values["decoder"])}
        if (given := values.get("stills")) is not None:
            sizes = pinpoints(list(given["pinpoints"]), tower.image_size)
            parts["stills"] = ImageConfig(**{**given, "pinpoints": sizes})
        return LlavaQwenConfig(**{**values, **parts})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a model config: {error}") from error


_QWEN2_7B = DecoderConfig(
    vocab_size=152064,
    width=3584,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    mlp_width=18944,
    rope_theta=1e6,
)
_QWEN2_HALF_B = DecoderConfig(
    vocab_size=151936,
    width=896,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    mlp_width=4864,
    rope_theta=1e6,
    tied=True,
)
_QWEN2_72B = DecoderConfig(
    vocab_size=152064,
    width=8192,
    layers=80,
    heads=64,
    kv_heads=8,
    head_dim=128,
    mlp_width=29568,
    rope_theta=1e6,
)
_SO400M = TowerConfig("siglip", 384, 14, width=1152, layers=26, heads=16, mlp_width=4304)
_TINY_DECODER = DecoderConfig(
    vocab_size=512,
    width=128,
    layers=3,
    heads=4,
    kv_heads=4,  # with two, many bases do not learn to find an event by its hue
    head_dim=32,
    mlp_width=256,
    # Short: at 32 frames the slow dimensions turn further than on short clips, so what is looked up
    # there by content is lost at length, as past the context of a large model. 1e4 loses little.
    rope_theta=1e3,
)

PRESETS: dict[str, LlavaQwenConfig] = {
    "longva_7b": LlavaQwenConfig(
        tower=TowerConfig("clip", 336, 14, width=1024, layers=23, heads=16, mlp_width=4096),
        decoder=dataclasses.replace(_QWEN2_7B, rope_theta=1e9),
        max_length=524288,
    ),
    "llava_video_7b": LlavaQwenConfig(tower=_SO400M, decoder=_QWEN2_7B, newline="grid"),
    "llava_video_72b": LlavaQwenConfig(tower=_SO400M, decoder=_QWEN2_72B, newline="grid"),
    **{
        f"llava_onevision_{size}": LlavaQwenConfig(_SO400M, decoder, "bilinear", "one_token")
        for size, decoder in (("0.5b", _QWEN2_HALF_B), ("7b", _QWEN2_7B), ("72b", _QWEN2_72B))
    },
    # One token per frame: the tiny frame is 2x2 patches, pooled 2x2.
    "tiny_longva": LlavaQwenConfig(
        tower=TowerConfig("clip", 32, 16, width=96, layers=1, heads=4, mlp_width=384),
        decoder=_TINY_DECODER,
        max_length=1024,
    ),
    "tiny_llava_video": LlavaQwenConfig(
        tower=TowerConfig("siglip", 32, 16, width=96, layers=1, heads=4, mlp_width=384),
        decoder=_TINY_DECODER,
        newline="grid",
        max_length=1024,
    ),
}
# Every published checkpoint of this family is bfloat16.
PRESET_DTYPES = {name: "float32" if name.startswith("tiny") else "bfloat16" for name in PRESETS}
