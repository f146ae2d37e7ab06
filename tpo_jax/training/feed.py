"""From a host's batches to arrays on the mesh, with the reference's log-probabilities."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from tpo_jax.data.mixture import Mixture
from tpo_jax.data.padding import PaddingCheck
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.records import PairRecord
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.sharding import to_global
from tpo_jax.training.experiment import Experiment
from tpo_jax.training.reference import Reference, cache_key, look_up


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a batch needs before a step can read it.

    Attributes:
        mesh: Devices.
        pairs: Records of the shards, which `pair_index` points to.
        reference: float32 `[pairs, 2 or 4]` by `pair_index`, for every F that batches have; None if
            the objective reads no cache.
        padding: Looks at the first batches.
        frames: Frames of a video, for every F that batches have; empty: all batches have the same.
    """

    mesh: jax.sharding.Mesh
    pairs: Sequence[PairRecord]
    reference: Mapping[int, np.ndarray] | None = None
    padding: PaddingCheck | None = None
    frames: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def put(self, batch: Batch) -> Batch:
        """Return global arrays of this process's rows of a batch.

        Raises:
            InputError: The cache lacks a pair.
        """
        if self.reference is not None:
            known = self.reference[batch.frames.shape[1]]
            logps = look_up(known, np.asarray(batch.pair_index), self.pairs)
            batch = dataclasses.replace(batch, reference_logps=logps)
        if self.padding is not None:
            self.padding.look(batch)
        return to_global(batch, self.mesh)

    def about(self, batch: Batch) -> dict[str, float]:
        """Return what a record says of a batch: `frames`, its number of frames, if batches differ
        in it.
        """
        return {"frames": float(self.frames[batch.frames.shape[1]])} if self.frames else {}

    def names(self, index: np.ndarray) -> str:
        """Return the ids of the pairs at these positions."""
        return ", ".join(self.pairs[i].id for i in index)


def make_feeds(
    experiment: Experiment,
    reference: Reference,
    weights: str,
    mixture: Mixture,
    seen: list[list[Pipeline]],
    held_out: Pipeline | None,
) -> tuple[Feed, Feed | None]:
    """Return the feed of the training batches and that of the held-out pairs, with the reference's
    log-probabilities if the objective reads them.

    The log-probabilities are loaded from their cache, or computed and cached if absent.

    Args:
        weights: Fingerprint of the reference.
        seen: Pipelines of the batches: for every directory, one for each number of frames.
        held_out: The pairs that are evaluated; None: none are.
    """
    given = experiment.reference.reference
    feed = _make_feed(experiment, reference, weights, mixture, seen, given)
    if jax.process_index() == 0:
        feed = dataclasses.replace(feed, padding=PaddingCheck(mixture.parts[0].model))
    if not held_out:
        return feed, None
    alone = Mixture([held_out])
    return feed, _make_feed(experiment, reference, weights, alone, [[held_out]])


def _make_feed(
    experiment: Experiment,
    reference: Reference,
    weights: str,
    mixture: Mixture,
    seen: list[list[Pipeline]],
    given: str = "",
) -> Feed:
    """Return the feed of a mixture; see `make_feeds`.

    Args:
        given: File of the log-probabilities; empty: beside the shards.
    """
    objective, dtype, pairs = experiment.objective, experiment.compute.dtype, mixture.pairs
    counts = {part.shape.frames: part.config.frames.most for parts in seen for part in parts}
    if len(counts) == 1:
        counts = {}
    if objective.uses_live_reference or not objective.uses_reference:
        return Feed(reference.mesh, pairs, frames=counts)
    known: dict[int, np.ndarray] = {}
    for first, parts in zip(mixture.first, seen, strict=True):
        for part in parts:
            shown = part.for_reference()
            logps = reference.logps(shown, cache_key(shown, weights, dtype), given)
            absent = np.full((len(pairs), logps.shape[1]), np.nan, logps.dtype)
            whole = known.setdefault(part.shape.frames, absent)
            whole[first : first + len(logps)] = logps
    return Feed(reference.mesh, pairs, known, frames=counts)
