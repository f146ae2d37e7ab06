"""How many tokens the rows of pairs take: measured once, kept beside the shards.

A kept file is keyed by everything its numbers depend on, tokenizer and template among it, so that a
run with the same settings opens a large data set without tokenizing its texts.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tpo_jax.io.files import replacing_file

# Fewer pairs are measured so fast that no file is kept.
_FEW = 1000
_UNKNOWN = -1


def measured(
    directory: Path,
    key: dict[str, Any],
    positions: np.ndarray,
    num_pairs: int,
    measure: Callable[[int], tuple[int, int]],
) -> np.ndarray:
    """Return the token counts of prefix and continuation of pairs: int64 `[n, 2]`.

    Args:
        directory: Directory of the shards; if it cannot be written, nothing is kept.
        key: What the lengths depend on, as JSON can hold it.
        positions: int64 `[n]`, of the pairs in the shards.
        num_pairs: Number of pairs in the shards.
        measure: Called with the position of every pair that was not measured before.
    """
    if len(positions) < _FEW:
        return np.array([measure(int(p)) for p in positions], np.int64).reshape(-1, 2)
    text = json.dumps(key, sort_keys=True)
    path = directory / f"lengths-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    known = _kept(path, text, num_pairs)
    missing = [int(p) for p in positions if known[p, 0] == _UNKNOWN]
    if missing:
        known[missing] = [measure(p) for p in missing]
        with contextlib.suppress(OSError), replacing_file(path, suffix=".npz") as temporary:
            np.savez(temporary, key=text, lengths=known)
    return known[positions]


def _kept(path: Path, key: str, num_pairs: int) -> np.ndarray:
    """Return the kept lengths, int64 `[num_pairs, 2]`; `_UNKNOWN` where none is kept."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile),
        np.load(path, allow_pickle=False) as archive,
    ):
        lengths = archive["lengths"]
        same = str(archive["key"]) == key and lengths.shape == (num_pairs, 2)
        if same and lengths.dtype == np.int64:
            return lengths
    return np.full((num_pairs, 2), _UNKNOWN, np.int64)
