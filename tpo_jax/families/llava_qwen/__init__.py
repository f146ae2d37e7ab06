"""LongVA, LLaVA-Video and LLaVA-OneVision: a CLIP or SigLIP tower before a Qwen2 decoder."""

from tpo_jax.families.family import Family, Layout
from tpo_jax.families.llava_qwen import (
    config,
    onevision,
    processing,
    published,
    template,
    weights,
)


def _model() -> type:
    from tpo_jax.families.llava_qwen.model import LlavaQwen

    return LlavaQwen


FAMILY = Family(
    name="llava_qwen",
    config=config.LlavaQwenConfig,
    from_dict=config.from_dict,
    presets=config.PRESETS,
    preset_dtypes=config.PRESET_DTYPES,
    model=_model,
    preprocess=processing.preprocess,
    picture=processing.picture,
    independent_frames=True,
    templates=template.TEMPLATES,
    frame_flops=config.frame_flops,
    recognises=published.recognises,
    reads=(
        f"{published.ARCHITECTURE} (LongVA, LLaVA-Video, LLaVA-OneVision), {onevision.ARCHITECTURE}"
    ),
    read_config=published.read_config,
    check_files=lambda directory: None,
    settings=published.SETTINGS,
    choices={"pooling": config.POOLINGS, "newline": config.NEWLINES},
    config_files=published.config_files,
    update_config=published.update_config,
    updated_files=lambda directory, config: {},
    layouts={
        "original": Layout(published.new_config, str),
        "transformers": Layout(onevision.new_config, weights.transformers_name),
    },
    layout_of=published.layout_of,
    weights=weights.weights,
    canonical=weights.canonical,
    beside=published.beside,
    connector=weights.CONNECTOR,
    benchmark_frames=config.benchmark_frames,
)
