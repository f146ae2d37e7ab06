"""Flags of the commands that load a model: which one, its compute dtype and its prompts."""

import dataclasses
from pathlib import Path

from absl import flags

from tpo_jax.families.template import STYLES, TIME_INSTRUCTIONS
from tpo_jax.io.paths import define_path
from tpo_jax.models import quantized
from tpo_jax.parallel.programs import CACHE_HELP

_WEIGHTS = "Quantize the decoder's layers while they are loaded; empty: as stored."

flags.disclaim_key_flags()  # flags defined here belong to the module that calls `define_…`


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """Where a model comes from, its compute dtype and that of its layers, as `tpo_jax.load` takes
    them, and whether its programs are kept.
    """

    checkpoint: flags.FlagHolder[Path]
    adapters: flags.FlagHolder[Path | None]
    tower: flags.FlagHolder[Path | None]
    dtype: flags.FlagHolder[str]
    weights: flags.FlagHolder[str]
    compilation_cache: flags.FlagHolder[bool]


@dataclasses.dataclass(frozen=True)
class PromptFlags:
    """How questions become prompts, as `load_processor` takes them."""

    time_instruction: flags.FlagHolder[str | None]
    prompt_style: flags.FlagHolder[str]


def define_model(dtype: str, values: flags.FlagValues = flags.FLAGS) -> ModelFlags:
    """Define the flags of a model; `dtype` is the default of `--dtype`."""
    return ModelFlags(
        checkpoint=define_path(
            "checkpoint",
            None,
            "Model directory, or its name on the Hugging Face Hub.",
            required=True,
            flag_values=values,
        ),
        adapters=define_path(
            "adapters",
            None,
            "LoRA adapters as PEFT stores them, merged into --checkpoint.",
            flag_values=values,
        ),
        tower=define_path(
            "tower",
            None,
            "Folder of a Hugging Face vision tower, for a --checkpoint without its own.",
            flag_values=values,
        ),
        dtype=flags.DEFINE_enum("dtype", dtype, ["float32", "bfloat16"], "Compute dtype.", values),
        weights=flags.DEFINE_enum("weights", "", quantized.CHOICES, _WEIGHTS, values),
        compilation_cache=flags.DEFINE_bool("compilation_cache", True, CACHE_HELP, values),
    )


def define_prompts(values: flags.FlagValues = flags.FLAGS) -> PromptFlags:
    """Define `--time_instruction` and `--prompt_style`."""
    return PromptFlags(
        time_instruction=flags.DEFINE_enum(
            "time_instruction",
            None,
            TIME_INSTRUCTIONS,
            "Sentence on the frames' times: none, directly after the video, or on the next line. "
            "Default: what the checkpoint asks for.",
            values,
        ),
        prompt_style=flags.DEFINE_enum(
            "prompt_style",
            "inference",
            STYLES,
            "Prompts and labels: of the original inference code, or of the original DPO trainer.",
            values,
        ),
    )
