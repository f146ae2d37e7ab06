"""Which run a checkpoint is of: what must agree when it resumes, and what may change."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.data.mixture import Mixture
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.errors import InputError
from tpo_jax.training.experiment import Experiment, base
from tpo_jax.training.reference import cache_key

# Fields that may change on resume: placement, speed, and what is recorded; nothing that changes the
# result.
FREE = (
    "mesh",
    "compute.remat",
    "compute.head_chunk",
    "compute.micro_batches",
    "compute.attention",
    "compute.scan",
    "data.workers",
    "data.cache_mib",
    "data.on_error",
    "data.verify_shards",
    "data.reference",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
)

# Format of checkpoints: 2 holds what steps change, 1 also held the frozen weights.
FORMAT = 2


def identity(
    experiment: Experiment,
    config: ConfigDict,
    params: dict,
    mixture: Mixture,
    held_out: Pipeline | None,
    reference: str = "",
) -> tuple[str, dict[str, Any]]:
    """Return the fingerprint of the weights, and what a checkpoint carries to identify its run: the
    config, and what else the numbers depend on.

    Args:
        params: What the run begins with.
        reference: Fingerprint of the reference's weights; empty: the run begins with them.
    """
    weights, dtype = weights_fingerprint(params), experiment.compute.dtype
    key, *others = (cache_key(part, weights, dtype) for part in mixture.parts)
    identity = key | {"checkpoint_format": FORMAT}
    if reference:
        identity["reference"] = reference
    if others:
        identity["replay"] = [[key["shards"], key["pairs"]] for key in others]
    if held_out:
        key = cache_key(held_out, weights, dtype)
        names = ("shards", "pairs", "two_videos")
        identity["held_out"] = [key[name] for name in names if name in key]
    return weights, {"config": json.loads(config.to_json_best_effort()), "identity": identity}


def check_same_run(saved: dict, meta: dict) -> None:
    """Check that a checkpoint is of this run.

    Raises:
        InputError: It is of other data or weights, or its config differs in more than `FREE`.
    """
    ours, theirs = meta["identity"], saved["identity"]
    if other := [name for name in ours if ours[name] != theirs.get(name)]:
        raise InputError(
            f"--workdir holds a checkpoint of a run with other {', '.join(other)}; use another one"
        )

    if changes := changed_fields(saved["config"], meta["config"]):
        raise InputError(
            f"--workdir holds a checkpoint of another run ({changes}); use another one"
        )


def changed_fields(saved: dict, config: dict, besides: Collection[str] = ()) -> str:
    """Return the fields in which a config differs from a saved one, `a.b: 1 -> 2, …`, or "".

    Args:
        besides: Fields that may differ, besides `FREE`.
    """

    def fields(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if f"{prefix}{name}" in (*FREE, *besides):
                continue
            if isinstance(value, dict):
                yield from fields(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    # A field newer than the run gets its default, which is how the run behaved.
    defaults = dict(fields(json.loads(base().to_json_best_effort())))
    ours, theirs = dict(fields(config)), defaults | dict(fields(saved))
    differs = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    return ", ".join(f"{n}: {theirs.get(n)!r} -> {ours.get(n)!r}" for n in differs)
