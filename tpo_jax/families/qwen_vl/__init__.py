"""Qwen3-VL: a tower over frames of native shape before a decoder with positions on three axes."""

from tpo_jax.families.family import Family, Layout
from tpo_jax.families.qwen_vl import config, processing, processors, published, template, weights


def _model() -> type:
    from tpo_jax.families.qwen_vl.model import QwenVL

    return QwenVL


FAMILY = Family(
    name="qwen_vl",
    config=config.QwenVLConfig,
    from_dict=config.from_dict,
    presets=config.PRESETS,
    preset_dtypes=config.PRESET_DTYPES,
    model=_model,
    preprocess=processing.preprocess,
    picture=processing.picture,
    independent_frames=False,
    templates=template.TEMPLATES,
    frame_flops=config.frame_flops,
    recognises=published.recognises,
    reads=published.READS,
    read_config=published.read_config,
    settings=published.SETTINGS,
    choices={},
    config_files=published.config_files,
    update_config=published.update_config,
    updated_files=processors.updated_files,
    layouts={"transformers": Layout(published.new_config, str)},
    layout_of=published.layout_of,
    weights=weights.weights,
    canonical=weights.canonical,
    beside=published.beside,
    connector=weights.CONNECTOR,
    benchmark_frames=config.benchmark_frames,
)
