"""LongVA and LLaVA-Video: a CLIP or SigLIP tower before a Qwen2 decoder."""

from tpo_jax.families.family import Family
from tpo_jax.families.llava_qwen import config, processing


def _model() -> type:
    from tpo_jax.families.llava_qwen.model import LlavaQwen

    return LlavaQwen


FAMILY = Family(
    name="llava_qwen",
    config=config.LlavaQwenConfig,
    from_dict=config.from_dict,
    presets=config.PRESETS,
    model=_model,
    preprocess=processing.preprocess,
    picture=processing.picture,
    frame_flops=config.frame_flops,
    benchmark_frames=config.benchmark_frames,
)
