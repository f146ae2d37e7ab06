"""A Qwen3-VL and a Qwen2.5-VL small enough to compare, whose parts all have sizes of their own."""

from tpo_jax.families.qwen_vl.config import Qwen25VLConfig, QwenVLConfig, TowerConfig
from tpo_jax.models.config import DecoderConfig

CONFIG = QwenVLConfig(
    TowerConfig("qwen3_vl", 4, 32, 3, 2, 40, table=5, deepstack=(0, 1)),
    DecoderConfig(
        vocab_size=320,
        width=48,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=12,
        mlp_width=64,
        rope_theta=5e6,
        qkv_bias=False,
        qk_norm=True,
        rope_sections=(2, 2, 2),
        rope_interleaved=True,
    ),
    max_length=512,
    frame_tokens=12,
    video_pixels=(64, 4096),
    image_pixels=(64, 1024),
)

CONFIG_2_5 = Qwen25VLConfig(
    TowerConfig("qwen2_5_vl", 4, 32, 4, 2, 40, window=2, full_blocks=(1, 3), tokens_per_second=3),
    DecoderConfig(
        vocab_size=320,
        width=48,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=12,
        mlp_width=64,
        rope_theta=1e6,
        rope_sections=(2, 1, 3),
    ),
    max_length=512,
    frame_tokens=12,
    video_pixels=(64, 768),
    image_pixels=(64, 1024),
    video_tokens=48,
)
CONFIGS = {"Qwen3-VL": CONFIG, "Qwen2.5-VL": CONFIG_2_5}
