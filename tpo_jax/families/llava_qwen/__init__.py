"""LongVA and LLaVA-Video: a CLIP or SigLIP tower before a Qwen2 decoder."""

from tpo_jax.families.family import Family
from tpo_jax.families.llava_qwen import config, processing, published, template, weights


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
    templates=template.TEMPLATES,
    frame_flops=config.frame_flops,
    recognises=published.recognises,
    reads="'llava_qwen' checkpoints (LongVA, LLaVA-Video)",
    read_config=published.read_config,
    settings=published.settings_of,
    choices={"pooling": config.POOLINGS, "newline": config.NEWLINES},
    config_files=published.config_files,
    update_config=published.update_config,
    new_config=published.new_config,
    weights=weights.weights,
    connector=weights.CONNECTOR,
    benchmark_frames=config.benchmark_frames,
)
