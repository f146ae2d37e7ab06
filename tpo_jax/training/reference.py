"""Reference log-probabilities: computed once, cached beside the shards, looked up in every step.

The cache is keyed by everything its numbers depend on: reference weights, shards, prompt template,
frame sampling and compute dtype. A cache with another key is an error, never used and never
replaced silently.
"""

import contextlib
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import P
from jax.experimental import multihost_utils

from tpo_jax.data.config import SAME
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.io.files import replacing_file
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import key_of
from tpo_jax.parallel.programs import built_once
from tpo_jax.parallel.sharding import to_global


def cache_key(pipeline: Pipeline, weights: str, dtype: str) -> dict[str, Any]:
    """Return what the reference log-probabilities of a pipeline's pairs depend on.

    Args:
        weights: Fingerprint of the reference.
    """
    data, two_videos = pipeline.config, pipeline.two_videos.pairs
    more = {}
    if len(two_videos):
        more["two_videos"] = hashlib.sha256(two_videos.tobytes()).hexdigest()
    if pipeline.shown.view != SAME:
        more["view"] = pipeline.shown.view
    return more | {
        "weights": weights,
        "model": key_of(pipeline.model),
        "shards": pipeline.shards.fingerprint,
        "pairs": hashlib.sha256(pipeline.pairs.tobytes()).hexdigest(),
        "sampling": [data.sampling, data.frames.most],
        "template": [data.time_instruction, data.prompt_style, data.pairs_per_row > 1],
        "tokenizer": hashlib.sha256(pipeline.tokenizer.to_str().encode()).hexdigest(),
        "dtype": dtype,
    }


class Reference:
    """Log-probabilities under the reference, of any pipeline's pairs.

    Args:
        score: Maps `(params, batch)` to float32 `[B, Q, 2]`, or `[B, Q, 4]` with the sums over the
            phrases of both answers last; both rows of a pair of two videos hold the sums of both.
    """

    def __init__(
        self, score: Callable[[dict, Batch], jax.Array], params: dict, mesh: jax.sharding.Mesh
    ):
        self._params, self.mesh = params, mesh
        self._score = jax.jit(_indexed(score), out_shardings=jax.NamedSharding(mesh, P()))

    def logps(self, pipeline: Pipeline, key: dict[str, Any], given: str = "") -> np.ndarray:
        """Load the log-probabilities of a pipeline's pairs, or compute and save them if absent.

        All processes must call this together.

        Args:
            pipeline: Of the pairs; its open shards and decoded clips are reused.
            key: Its `cache_key`.
            given: File to load; empty: the one beside the shards.

        Returns:
            float32 `[pairs in the shards, 2]`, `[…, 4]` with phrases; NaN for pairs that the
            pipeline does not use or cannot decode.

        Raises:
            InputError: The file is unreadable, or was computed with another key.
        """
        key = key | ({"phrases": True} if pipeline.config.phrases else {})
        path = Path(given) if given else cache_path(Path(pipeline.config.shards), key)
        # Processes whose disks differ must still agree on who computes.
        if given or multihost_utils.process_allgather(np.array(path.exists())).all():
            return load(path, key, len(pipeline.shards))
        print(f"computing reference log-probabilities: {path}", file=sys.stderr)
        logps = self.compute(pipeline)
        if not path.exists():
            save(path, key, logps)
        return logps

    def compute(self, pipeline: Pipeline) -> np.ndarray:
        """Score every pair of a pipeline once; returns what `logps` returns."""
        logps = np.empty((0, 0), np.float32)
        with contextlib.closing(iter(pipeline.once())) as batches, jax.set_mesh(self.mesh):
            for batch in batches:
                found = self._score(self._params, to_global(batch, self.mesh))
                values, index = jax.device_get(found)
                if not len(logps):
                    logps = np.full((len(pipeline.shards), values.shape[-1]), np.nan, np.float32)
                logps[index[index >= 0]] = values[index >= 0]
        return logps


@built_once
def _indexed(score: Callable[[dict, Batch], jax.Array]) -> Callable[[dict, Batch], tuple]:
    """Build a function that returns the positions of the pairs beside what `score` returns."""
    return lambda params, batch: (score(params, batch), batch.pair_index)


def cache_path(directory: Path, key: dict[str, Any]) -> Path:
    """Return where the log-probabilities of `key` are: `reference-<hash>.npz` beside the shards."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return directory / f"reference-{digest[:16]}.npz"


def load(path: Path, key: dict[str, Any], num_pairs: int) -> np.ndarray:
    """Load float32 `[num_pairs, 2]` from a cache file, `[num_pairs, 4]` with phrases.

    Raises:
        InputError: The file is unreadable, or was computed with another key; names what differs.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored, logps = json.loads(str(archive["key"])), archive["logps"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a cache of reference log-probabilities ({error})") from error
    if stored != key:
        differs = sorted(k for k in key.keys() | stored.keys() if stored.get(k) != key.get(k))
        raise InputError(
            f"{path}: stale, computed with other {', '.join(differs)}; remove it or leave "
            "data.reference empty to compute the right one"
        )
    if len(logps) != num_pairs:
        raise InputError(f"{path}: holds {logps.shape[0]} pairs, the shards {num_pairs}")
    return logps


def save(path: Path, key: dict[str, Any], logps: np.ndarray) -> None:
    """Write a cache file; every process may do so."""
    with replacing_file(path, suffix=".npz") as temporary:
        np.savez(temporary, key=json.dumps(key, sort_keys=True), logps=logps)


def look_up(logps: np.ndarray, index: np.ndarray, pairs: Sequence[PairRecord]) -> np.ndarray:
    """Return the rows of a cache for the pairs of a batch, 0 where there is no pair.

    Args:
        logps: float32 `[pairs, 2 or 4]`.
        index: int32 `[B, Q]`, the batch's `pair_index`.

    Returns:
        float32 `[B, Q, 2 or 4]`.

    Raises:
        InputError: The cache lacks a pair: it could not be decoded when the cache was computed.
    """
    found = np.where(index[..., None] >= 0, logps[np.maximum(index, 0)], 0)
    if np.isnan(found).any():
        position = index[np.isnan(found).any(-1)][0]
        raise InputError(
            f"pair {pairs[position].id!r} could not be decoded when the reference was computed and "
            "can be now: remove the reference-*.npz beside the shards"
        )
    return found
