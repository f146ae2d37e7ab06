"""Batches decoded ahead of time, by threads or by processes."""

import signal
from collections.abc import Iterator
from typing import Any

import grain
from absl import flags

from tpo_jax.io.processes import end_with_parent
from tpo_jax.models.batch import Batch

READ_AHEAD = 1 << 30  # bytes of decoded batches that a process reads ahead


class BatchIterator(Iterator[Batch]):
    """Batches in order, decoded ahead; its state is the same on every host.

    The training loop counts skipped pairs of all hosts in `skipped`, which is part of the state.
    """

    def __init__(
        self, batches: grain.sources.RandomAccessDataSource, workers: int, batch_bytes: int
    ):
        """Iterate over a `Pipeline`.

        Args:
            batches: The pipeline.
            workers: Processes that decode; 0: threads of this one. Each holds the batch it makes,
                one that is handed over, and those it has read ahead.
            batch_bytes: Size of a batch; two are read ahead, or one if two exceed `READ_AHEAD`.
        """
        self._source, self._workers, self.skipped = batches, workers, 0
        self._ahead = 2 if 2 * batch_bytes <= READ_AHEAD else 1
        self._next_batch = 0
        self._batches: Any = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._start()
        batch = next(self._batches)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Return what `set_state` needs to resume with the next batch."""
        return {"next_batch": self._next_batch, "skipped": self.skipped}

    def set_state(self, state: dict[str, int]) -> None:
        """Resume where an iterator of the same config stood, whatever its hosts and workers."""
        self.close()
        self._next_batch, self.skipped = state["next_batch"], state.get("skipped", 0)

    def close(self) -> None:
        """End the worker processes."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _start(self) -> grain.DatasetIterator:
        workers = self._workers
        batches = grain.MapDataset.source(self._source)[self._next_batch :]
        # Batches are large: a few are read ahead, not Grain's 500.
        threads = 1 if workers else self._ahead
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._ahead)
        dataset = batches.to_iter_dataset(ahead)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain hands the flags on; a notebook parses none
            processes = grain.MultiprocessingOptions(num_workers=workers)
            dataset = dataset.mp_prefetch(processes, worker_init_fn=_follow_parent)
        return iter(dataset)


def _follow_parent(*_: Any) -> None:
    """Make a worker process ignore signals and end with its parent.

    A signal to the whole process group is meant for the parent, which needs the worker's batches
    until it has saved; a parent that is killed cannot stop its workers.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
