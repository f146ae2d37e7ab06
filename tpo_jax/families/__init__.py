"""Registry of the model families; each has a subpackage with all code specific to it."""

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tpo_jax.errors import InputError
from tpo_jax.families import llava_qwen, qwen_vl
from tpo_jax.families.family import Family
from tpo_jax.models.config import ModelConfig

if TYPE_CHECKING:
    from tpo_jax.models.blocks import Projections
    from tpo_jax.models.vlm import VideoLanguageModel

# By the name that a native `config.json` gives.
FAMILIES: dict[str, Family] = {
    "llava_qwen": llava_qwen.FAMILY,
    "qwen_vl": qwen_vl.QWEN3,
    "qwen2_5_vl": qwen_vl.QWEN2_5,
}
# The family of native model directories that name none, because they predate families.
_UNNAMED = "llava_qwen"


def of(config: ModelConfig) -> Family:
    """Return the family of a config."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)


def recognise(values: dict, names: Collection[str] = ()) -> Family | None:
    """Return the family of a published checkpoint, None if it is of no family.

    Args:
        values: contents of its `config.json`.
        names: names of its tensors, if known.
    """
    return next((family for family in FAMILIES.values() if family.recognises(values, names)), None)


def named(name: str | None) -> Family:
    """Return the family that a native `config.json` names.

    Raises:
        ValueError: no such family.
    """
    if (name or _UNNAMED) not in FAMILIES:
        raise ValueError(f"model family {name!r} is unknown; there are {sorted(FAMILIES)}")
    return FAMILIES[name or _UNNAMED]


def markers() -> set[str]:
    """Return the texts of all families that no question or answer may hold.

    Pairs are checked before a model is known.
    """
    templates = [t for family in FAMILIES.values() for t in family.templates.values()]
    return {marker for template in templates for marker in template.markers}


def choices(setting: str) -> list[str]:
    """Return the values that the families know for a setting of a published checkpoint."""
    return list(dict.fromkeys(x for f in FAMILIES.values() for x in f.choices.get(setting, ())))


def presets() -> dict[str, ModelConfig]:
    """Return the presets of all families by name."""
    return {name: c for family in FAMILIES.values() for name, c in family.presets.items()}


def preset(name: str) -> ModelConfig:
    """Return the named preset.

    Raises:
        InputError: no such preset.
    """
    known = presets()
    if name not in known:
        raise InputError(f"model.preset={name!r} is unknown; choose one of {sorted(known)}")
    return known[name]


def preset_dtype(name: str) -> str:
    """Return the dtype of a preset's weights: that of the published checkpoint of its size."""
    return next(f.preset_dtypes[name] for f in FAMILIES.values() if name in f.preset_dtypes)


# JAX is imported where a model is built: processes that only decode files do without it.
@functools.cache
def _split_abstract(config: ModelConfig, projections: "Projections") -> Any:
    from flax import nnx

    make = of(config).model()
    definition, state = nnx.split(nnx.eval_shape(lambda: make(config, nnx.Rngs(0), projections)))
    return definition, nnx.to_pure_dict(state)


def abstract_params(config: ModelConfig) -> dict:
    """Return shapes and dtypes (float32) of the parameters: nested dict of
    `jax.ShapeDtypeStruct`.
    """
    from tpo_jax.models.blocks import Projections

    return _split_abstract(config, Projections())[1]


def init_params(config: ModelConfig, seed: int) -> dict:
    """Return random float32 parameters, a pure function of `seed`."""
    from flax import nnx

    from tpo_jax.models.blocks import Projections

    model = of(config).model()(config, nnx.Rngs(seed), Projections())
    return nnx.to_pure_dict(nnx.split(model)[1])


def bind(config: ModelConfig, params: dict) -> "VideoLanguageModel":
    """Return the model over given parameters.

    Args:
        params: nested dict as `abstract_params` describes, of any float dtype; may include
            adapters of `models.lora`, and decoder kernels quantized by `models.quantized`.
    """
    from flax import nnx

    from tpo_jax.models.blocks import Projections
    from tpo_jax.models.lora import adapters_of
    from tpo_jax.models.quantized import SCALE

    ranks = {name: part["lora_a"].shape[-1] for name, part in adapters_of(params).items()}
    quantized = SCALE in params["decoder"]["layers"]["q"]
    projections = Projections(tuple(ranks.items()), quantized)
    return nnx.merge(_split_abstract(config, projections)[0], params)
