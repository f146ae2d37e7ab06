"""An experiment: the sections of a config file of `train` and `plan`, with every default.

Fields, defaults and checks are those of the dataclasses in `SECTIONS`. A field with a default can
be set in a config file; a field without one follows from others, and `read` supplies it.
`docs/configs.md` explains every field.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict, FieldReference

from tpo_jax.checkpoints.train_state import CheckpointPolicy
from tpo_jax.data.config import SAME, DataConfig
from tpo_jax.errors import InputError
from tpo_jax.models.lora import Lora
from tpo_jax.models.quantized import check_weights
from tpo_jax.objectives.preference import Objective
from tpo_jax.parallel.mesh import MeshShape
from tpo_jax.training.state import Optimizer
from tpo_jax.training.step import Compute

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the model comes from: a directory, or random weights of a preset's sizes."""

    preset: str = ""
    checkpoint: str = ""
    tower: str = ""  # directory of the vision tower, for a checkpoint without one
    adapters: str = ""  # directory of LoRA adapters, merged into the checkpoint
    reference: str = ""  # directory of the reference; empty: the model that the run begins with
    tokenizer: str = ""  # directory, with a preset
    weights: str = ""  # of a frozen decoder: int8 or int4; empty: as stored
    max_length: int = 0  # tokens of prefix and answer at most; 0: what the model says

    def __post_init__(self) -> None:
        check_weights("model.weights", self.weights)


@dataclasses.dataclass(frozen=True)
class ReferenceCache:
    """Where the reference log-probabilities are."""

    reference: str = ""  # file; empty: beside the shards, computed if absent


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is, and how often it records metrics."""

    batch_size: int = 64  # pairs of a step, over all devices
    num_steps: int = 0  # 0: `num_epochs`
    num_epochs: int = 1
    seed: int = 0  # of random weights and of the order of pairs
    log_every: int = 10  # steps
    eval_every: int = 0  # steps between evaluations of held-out pairs; 0: none

    def __post_init__(self) -> None:
        if not (self.num_steps or self.num_epochs):
            raise InputError("one of train.num_steps and train.num_epochs must be above 0")


SECTIONS: dict[str, tuple[type, ...]] = {
    "model": (Source,),
    "data": (DataConfig, ReferenceCache),
    "objective": (Objective,),
    "compute": (Compute,),
    "train": (Schedule, Optimizer, CheckpointPolicy),
    "lora": (Lora,),
    "mesh": (MeshShape,),
}


def base() -> ConfigDict:
    """Return a config with every field at its default; a config file says where it differs."""
    return ConfigDict(
        {
            name: {field.name: _value(field) for kind in kinds for field in _settable(kind)}
            for name, kinds in SECTIONS.items()
        }
    )


def _value(field: dataclasses.Field) -> Any:
    """Return a field's default; a union-typed field accepts all its types, also from a flag."""
    if isinstance(field.type, types.UnionType):
        return FieldReference(field.default, field_type=object)
    return field.default


def _settable(kind: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config, read and checked."""

    source: Source
    data: DataConfig
    reference: ReferenceCache
    objective: Objective
    compute: Compute
    schedule: Schedule
    optimizer: Optimizer
    checkpoints: CheckpointPolicy
    lora: Lora
    mesh: MeshShape


def take(kind: type[T], section: Mapping[str, Any], **others: Any) -> T:
    """Return a dataclass of `SECTIONS`, made of its fields in a section and of `others`."""
    values = {field.name: section[field.name] for field in _settable(kind)}
    return kind(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}, **others
    )


def read(config: ConfigDict) -> Experiment:
    """Return the experiment that a config describes.

    Raises:
        InputError: a field has a value that it cannot have.
    """
    objective = take(Objective, config.objective)
    schedule = take(Schedule, config.train)
    data = take(
        DataConfig,
        config.data,
        batch_size=schedule.batch_size,
        seed=schedule.seed,
        num_epochs=0 if schedule.num_steps else schedule.num_epochs,
        answers=objective.answers,
        phrases=objective.uses_phrases,
    )
    if data.video_pairs and not objective.uses_videos:
        raise InputError(
            f"objective.video_weight={objective.video_weight} must be above 0 to train on "
            f"data.video_pairs={data.video_pairs} pairs of two videos a batch"
        )
    if objective.uses_videos and not data.video_pairs:
        raise InputError(
            "objective.video_weight and objective.video_anchor are weights of pairs of two videos: "
            "set data.video_pairs, how many of them a batch has"
        )
    if schedule.eval_every and not (data.eval_shards or data.eval_share):
        raise InputError(
            f"train.eval_every={schedule.eval_every} needs held-out pairs: data.eval_shards or "
            "data.eval_share"
        )
    cached = objective.uses_reference and not objective.uses_live_reference
    reference, source = take(ReferenceCache, config.data), take(Source, config.model)
    views = {"data.reference_view": data.reference_view, "model.reference": source.reference}
    if not cached and (others := [f"{k}={v}" for k, v in views.items() if v not in (SAME, "")]):
        raise InputError(
            f"{others[0]} is for an objective that reads the cached log-probabilities of a "
            "reference"
        )
    if reference.reference and (len(data.frames.counts) > 1 or data.replay):
        raise InputError(
            f"data.reference={reference.reference} is for one directory and one number of frames; "
            "with several leave it empty"
        )
    lora, optimizer = take(Lora, config.lora), take(Optimizer, config.train)
    if source.weights and not (lora.rank or "decoder" in list(optimizer.freeze)):
        raise InputError(
            f"model.weights={source.weights} is for a decoder that is not trained: set lora.rank, "
            "or name decoder in train.freeze"
        )
    return Experiment(
        source=source,
        data=data,
        reference=reference,
        objective=objective,
        compute=take(Compute, config.compute),
        schedule=schedule,
        optimizer=optimizer,
        checkpoints=take(CheckpointPolicy, config.train),
        lora=lora,
        mesh=take(MeshShape, config.mesh),
    )
