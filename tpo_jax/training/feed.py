"""From a host's batches to arrays on the mesh, with the reference's log-probabilities."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from tpo_jax.data.padding import PaddingCheck
from tpo_jax.data.records import PairRecord
from tpo_jax.models.batch import Batch
from tpo_jax.parallel.sharding import to_global
from tpo_jax.training.reference import look_up


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a batch needs before a step can read it.

    Attributes:
        mesh: Devices.
        pairs: Of the shards, to name them by `pair_index`.
        reference: float32 `[pairs, 2 or 4]` by `pair_index`, for every F that batches have; None if
            the objective reads no cache.
        padding: Looks at the first batches.
        frames: Of a video, for every F that batches have; empty: all batches have the same.
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
