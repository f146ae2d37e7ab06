"""Where the loop's records go: files, console, Weights & Biases; process 0 alone writes them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from tpo_jax.training.goodput import GoodputJournal
from tpo_jax.training.held_out import PREFIX
from tpo_jax.training.metrics import MetricsWriter, Progress
from tpo_jax.training.watch import Watch, device_memory, wandb_run


@dataclasses.dataclass
class Recorder:
    """Writes the records of a run.

    Attributes:
        workdir: Directory of the files.
        meta: What checkpoints carry to identify their run; its `config` goes to Weights & Biases.
        schedule: Maps a step to its learning rate.
        watch: Profile, Weights & Biases.
        started: When this process began, seconds since the epoch.
    """

    workdir: Path
    meta: dict[str, Any]
    schedule: Callable[[int], Any]
    watch: Watch
    started: float

    @contextlib.contextmanager
    def open(self, first_step: int, num_steps: int) -> Iterator[None]:
        """Open the files of process 0 for the steps after `first_step`, and close them."""
        self._journal: GoodputJournal | None = None
        if jax.process_index():
            yield
            return
        with contextlib.ExitStack() as stack:
            journal = GoodputJournal(self.workdir, self.started)
            self._journal = stack.enter_context(contextlib.closing(journal))
            board = None
            if self.watch.wandb_project:
                board = wandb_run(self.watch.wandb_project, self.workdir, self.meta["config"])
            writer = MetricsWriter(self.workdir, first_step, board)
            self._writer = stack.enter_context(contextlib.closing(writer))
            self._progress = Progress(first_step, num_steps)
            yield

    def note_time(self, after: int, until: int, seconds: dict[str, float]) -> None:
        """Record where the time of the steps `after + 1 … until` went, as the clock splits it."""
        if self._journal:
            self._journal.add(after, until, seconds)

    def write(
        self, step: int, scalars: dict[str, float], trained: int, spent: dict[str, float]
    ) -> None:
        """Write the record of a step.

        Args:
            step: After which the record is written.
            scalars: Metrics of the step, and of held-out pairs if they were evaluated.
            trained: Pairs since the last record, of all processes.
            spent: Where the time since the last record went, seconds.
        """
        if not self._journal:
            return
        total = sum(spent.values())
        scalars = scalars | {
            "learning_rate": float(self.schedule(step - 1)),
            "pairs/s": trained / total,
            **{f"time/{name}": value / total for name, value in spent.items()},
            **device_memory(),
            "time/goodput": self._journal.account.goodput,
        }
        self._writer.write(step, scalars)
        self._progress.show(step, scalars, spent)
        held_out = {n.removeprefix(PREFIX): x for n, x in scalars.items() if n.startswith(PREFIX)}
        if held_out:
            self._progress.show_eval(step, held_out)
