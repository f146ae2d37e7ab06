"""Presets of Qwen3-VL and Qwen2.5-VL: the published sizes, and a tiny model of each."""

from collections.abc import Mapping

from tpo_jax.families.qwen_vl.config import (
    QWEN2_5,
    QWEN3,
    Qwen25VLConfig,
    QwenVLConfig,
    TowerConfig,
)
from tpo_jax.models.config import DecoderConfig


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


_SMALL = TowerConfig(QWEN3, 16, 1024, 24, 16, 4096, table=48, deepstack=(5, 11, 17))
_LARGE = TowerConfig(QWEN3, 16, 1152, 27, 16, 4304, table=48, deepstack=(8, 16, 24))

QWEN3_PRESETS: dict[str, QwenVLConfig] = {
    "qwen3_vl_2b": QwenVLConfig(_SMALL, _qwen3(2048, 28, 16, 6144, tied=True)),
    "qwen3_vl_4b": QwenVLConfig(_SMALL, _qwen3(2560, 36, 32, 9728, tied=True)),
    "qwen3_vl_8b": QwenVLConfig(_LARGE, _qwen3(4096, 36, 32, 12288, tied=False)),
    "qwen3_vl_32b": QwenVLConfig(_LARGE, _qwen3(5120, 64, 64, 25600, tied=False)),
    "tiny_qwen3_vl": QwenVLConfig(
        TowerConfig(QWEN3, 8, 96, 2, 4, 192, table=4, deepstack=(0,)),
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


def _qwen2(
    width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, vocab_size: int = 152064
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        mlp_width=mlp_width,
        rope_theta=1e6,
        tied=vocab_size == 151936,  # of the 3B alone
        rope_sections=(16, 24, 24),
    )


def _windows(mlp_width: int) -> TowerConfig:
    return TowerConfig(
        QWEN2_5,
        patch_size=14,
        width=1280,
        layers=32,
        heads=16,
        mlp_width=mlp_width,
        window=4,
        full_blocks=(7, 15, 23, 31),
        tokens_per_second=2,
    )


QWEN2_5_PRESETS: dict[str, Qwen25VLConfig] = {
    "qwen2_5_vl_3b": Qwen25VLConfig(_windows(3420), _qwen2(2048, 36, 16, 2, 11008, 151936)),
    "qwen2_5_vl_7b": Qwen25VLConfig(_windows(3420), _qwen2(3584, 28, 28, 4, 18944)),
    "qwen2_5_vl_72b": Qwen25VLConfig(_windows(3456), _qwen2(8192, 80, 64, 8, 29568)),
    "tiny_qwen2_5_vl": Qwen25VLConfig(
        TowerConfig(QWEN2_5, 8, 96, 2, 4, 192, window=2, full_blocks=(1,), tokens_per_second=2),
        DecoderConfig(
            vocab_size=512,
            width=128,
            layers=3,
            heads=4,
            kv_heads=2,
            head_dim=32,
            mlp_width=256,
            rope_theta=1e4,
            rope_sections=(4, 6, 6),
        ),
        max_length=2048,
        frame_tokens=4,
        video_pixels=(256, 1024),
        image_pixels=(256, 65536),
        video_tokens=512,
    ),
}


def dtypes(presets: Mapping[str, QwenVLConfig]) -> dict[str, str]:
    """Return the dtypes of presets' weights: every published checkpoint is bfloat16."""
    return {name: "float32" if name.startswith("tiny") else "bfloat16" for name in presets}
