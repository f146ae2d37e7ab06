"""How lmms-eval asks some models, by the name that it gives them.

Prompts are those of `lmms_eval_specific_kwargs` in its tasks; frames and system message those that
its wrappers, `models/chat/NAME.py`, have by default.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tpo_jax.evaluation import prompts

Prompt = Callable[[dict, Path, str], str]


class LmmsModel(NamedTuple):
    """What differs from the defaults of the benchmarks."""

    prompts: Mapping[str, Prompt]  # by benchmark
    num_frames: int
    rule: str  # one of `video.sampling.RULES`
    system: str  # message before the question


_ASSISTANT = "You are a helpful assistant."
_QWEN3_PROMPTS = {
    "videomme": prompts.videomme_options,
    "videomme_w_subtitle": prompts.videomme_subtitled_options,
    "videomme_v2": prompts.videomme_v2_options,
    "videomme_v2_w_subtitle": prompts.videomme_v2_subtitled_options,
}
LMMS_MODELS = {
    "qwen2_5_vl": LmmsModel({}, 32, "nearest", _ASSISTANT),
    "qwen3_vl": LmmsModel(_QWEN3_PROMPTS, 32, "nearest", _ASSISTANT),
}
