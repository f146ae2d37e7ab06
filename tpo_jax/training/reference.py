"""Reference log-probabilities: computed once, cached beside the shards, looked up in every step.

The cache is keyed by everything its numbers depend on: reference weights, shards, prompt template,
frame sampling and compute dtype. A cache of other circumstances is an error, never used and never
replaced in silence.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax import P

from tpo_jax.errors import InputError
from tpo_jax.io.files import replacing
from tpo_jax.models.batch import Batch


def cache_path(directory: Path, key: dict) -> Path:
    """Where the log-probabilities of `key` lie: `reference-<hash>.npz` beside the shards."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return directory / f"reference-{digest[:16]}.npz"


def load(path: Path, key: dict, num_pairs: int) -> np.ndarray:
    """float32 `[num_pairs, 2]` of a cache file, `[num_pairs, 4]` with phrases (`compute`).

    Raises:
        InputError: unreadable, or computed under another key; the message names what differs.
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


def compute(
    score: Callable[[dict, Batch], jax.Array],
    params: dict,
    batches: Iterable[Batch],
    num_pairs: int,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Scores every pair once.

    Args:
        score: `(params, batch)` to float32 `[B, Q, 2]`, or `[B, Q, 4]` with the sums over the
            phrases of both answers behind.
        params: of the reference.
        batches: global batches that hold every pair; `pair_index` is -1 for padding.
        num_pairs: pairs in the shards.
        mesh: of the batches.

    Returns:
        float32 `[num_pairs, 2 or 4]`, the same on all hosts; NaN for pairs that no batch held.
    """
    everywhere = jax.NamedSharding(mesh, P())
    jitted = jax.jit(lambda p, b: (score(p, b), b.pair_index), out_shardings=everywhere)
    logps = None
    with jax.set_mesh(mesh):
        for batch in batches:
            values, index = jax.device_get(jitted(params, batch))
            if logps is None:
                logps = np.full((num_pairs, values.shape[-1]), np.nan, np.float32)
            logps[index[index >= 0]] = values[index >= 0]
    if logps is None:
        raise ValueError("no batch to score")
    return logps


def save(path: Path, key: dict, logps: np.ndarray) -> None:
    """Writes the cache in one go (temporary name, then rename); every process may call it."""
    with replacing(path, "wb") as file:
        np.savez(file, key=json.dumps(key, sort_keys=True), logps=logps)
