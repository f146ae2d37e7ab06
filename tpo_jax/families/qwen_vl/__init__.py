"""Qwen3-VL and Qwen2.5-VL: a tower over frames of native shape before a decoder with positions on
three axes.
"""

import functools
from collections.abc import Mapping

from tpo_jax.families.family import Family, Layout
from tpo_jax.families.qwen_vl import (
    config,
    presets,
    processing,
    processors,
    published,
    template,
    weights,
)


def _model() -> type:
    from tpo_jax.families.qwen_vl.model import QwenVL

    return QwenVL


def _family(
    name: str,
    kind: type[config.QwenVLConfig],
    sizes: Mapping[str, config.QwenVLConfig],
    inference: template.QwenVLTemplate,
) -> Family:
    return Family(
        name=name,
        config=kind,
        from_dict=functools.partial(config.from_dict, kind),
        presets=sizes,
        preset_dtypes=presets.dtypes(sizes),
        model=_model,
        preprocess=processing.preprocess,
        picture=processing.picture,
        independent_frames=False,
        templates={"inference": inference},
        frame_flops=config.frame_flops,
        recognises=functools.partial(published.recognises, kind.KIND),
        reads=published.READS[kind.KIND],
        read_config=functools.partial(published.read_config, kind),
        check_files=functools.partial(processors.check_chat, reads=published.READS[kind.KIND]),
        settings=published.SETTINGS[kind.KIND],
        choices={"text_after": config.TEXT_AFTER} if kind is config.Qwen25VLConfig else {},
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


QWEN3 = _family("qwen_vl", config.QwenVLConfig, presets.QWEN3_PRESETS, template.QWEN3)
QWEN2_5 = _family("qwen2_5_vl", config.Qwen25VLConfig, presets.QWEN2_5_PRESETS, template.QWEN2_5)
