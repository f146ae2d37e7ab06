"""The pairs of one shard directory or of several, mixed batch by batch.

The directory of batch `k` is drawn by the seed, and the batch is the next one of that directory, so
batch `k` is a pure function of the config and `k`, as in a single pipeline.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from tpo_jax.data import draws
from tpo_jax.data.batches import BatchIterator
from tpo_jax.data.config import DataConfig
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.records import PairRecord
from tpo_jax.errors import InputError
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import ModelConfig

_CHUNK = 1024  # batches whose directories are drawn at once


class Mixture:
    """The batches of this host, `mixture[k]` or, decoded ahead, `iter(mixture)`.

    `pair_index` counts through the pairs of all directories, one directory after the other. The run
    ends when the first directory has had its epochs; the others start over as often as needed.
    """

    def __init__(self, parts: Sequence[Pipeline], shares: tuple[float, ...] = (1.0,)):
        """Mix pipelines.

        Args:
            parts: One for each directory; all but the first without end.
            shares: Share of the batches for each.
        """
        self.parts, self._shares = tuple(parts), shares
        self._seed = parts[0].config.seed
        sizes = [len(part.shards) for part in parts]
        self.first = np.cumsum([0, *sizes])[:-1].tolist()  # position of each one's first pair
        self._drawn = np.zeros(0, np.int64)
        self._length = batches = len(parts[0])
        if parts[0].config.num_epochs:
            while (of_first := np.flatnonzero(self._drawn == 0)).size < batches:
                self._draw(len(self._drawn))
            self._length = int(of_first[batches - 1]) + 1

    @property
    def pairs(self) -> tuple[PairRecord, ...]:
        """All pairs, to name them by `pair_index`."""
        return sum((part.shards.index for part in self.parts), ())

    def __len__(self) -> int:
        """Return the number of batches of the run; 2**40 where it has no end."""
        return self._length

    def __iter__(self) -> BatchIterator:
        most = max(part.shape.num_bytes for part in self.parts)
        return BatchIterator(self, self.parts[0].config.workers, most)

    def __getitem__(self, k: int) -> Batch:
        """Return this host's part of batch `k`."""
        if not 0 <= k < len(self):
            raise IndexError(f"batch {k} of {len(self)}")
        part, at = self.place(k)
        batch, first = self.parts[part][at], self.first[part]
        index = np.asarray(batch.pair_index)
        moved = index + np.select([index >= 0, index < -1], [first, -first]).astype(np.int32)
        return dataclasses.replace(batch, pair_index=moved)

    def place(self, k: int) -> tuple[int, int]:
        """Return the directory of batch `k` and the number of the batch in it, both from 0."""
        drawn = self._draw(k)
        return int(drawn[k]), int((drawn[:k] == drawn[k]).sum())

    def _draw(self, k: int) -> np.ndarray:
        """Return the directories of batches, int64, at least up to batch `k`."""
        drawn = self._drawn  # read once: other threads draw, too, and get the same
        if k >= len(drawn):
            ks = range(len(drawn), k + _CHUNK)
            more = [draws.drawn(self._shares, self._seed, k, draws.DIRECTORY) for k in ks]
            drawn = self._drawn = np.concatenate([drawn, np.array(more, np.int64)])
        return drawn

    def seen(self, num_batches: int) -> list[list[Pipeline]]:
        """Return `Pipeline.seen` of every directory for its share of the first batches."""
        drawn = self._draw(num_batches)[:num_batches]
        counts = np.bincount(drawn, minlength=len(self.parts)).tolist()
        return [part.seen(n) if n else [] for part, n in zip(self.parts, counts, strict=True)]


def open_mixture(
    config: DataConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    process_index: int = 0,
    process_count: int = 1,
) -> Mixture:
    """Open `data.shards` and the directories of `data.replay`.

    All pairs of a directory of `data.replay` are used. Batches with one number of frames have one
    shape, whatever their directory, as long as the model's context allows it.

    Raises:
        InputError: As for a pipeline, or two directories hold the same pairs.
    """
    others = dataclasses.replace(
        config,
        replay=(),
        replay_weights=(),
        num_epochs=0,
        mixing=(),
        limit=0,
        eval_share=0.0,
        eval_shards="",
    )
    configs = [config, *(dataclasses.replace(others, shards=path) for path in config.replay)]
    parts, directories = [], dict[str, str]()
    for one in configs:
        part = Pipeline(one, model, tokenizer, process_index, process_count)
        if same := directories.get(part.shards.fingerprint):
            raise InputError(
                f"data.replay: {same} and {one.shards} hold the same pairs; leave one out"
            )
        directories[part.shards.fingerprint] = one.shards
        parts.append(part)
    for part in parts:
        part.widen(parts)
    return Mixture(parts, config.shares)
