"""Batches of concurrent questions.

One thread owns the devices. It takes the oldest waiting question, waits a few milliseconds for
others, and runs together those of the same model, settings and shape. Greedy questions about one
video share a row, so the video is encoded once; sampled ones have rows of their own, because a
draw depends on the place in a row.
"""

import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np

from tpo_jax.data.rows import Row
from tpo_jax.families.template import Question
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Answer
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.models import ServedModel, Visual, prompt_length


@dataclasses.dataclass(eq=False)
class Job:
    """A question that waits for its answer.

    Attributes:
        model: Answers it.
        visual: The video or images it is about.
        question: The conversation up to it, or its text.
        row: The tokenized prompt of this question alone.
        sampling: Settings.
        seed: Of its random draws.
        max_tokens: Longest answer.
        stop: Texts that end it.
        deliver: Called from the engine's thread with every state of the answer, or an error.
        wanted: Set to False when the client no longer waits.
        arrived: Seconds of `time.monotonic`.
        last: The latest state delivered.
    """

    model: ServedModel
    visual: Visual
    question: Question
    row: Row
    sampling: Sampling
    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    deliver: Callable[[Answer | ApiError], None]
    wanted: bool = True
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    last: Answer | None = None

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens in the prompt, visual ones included."""
        return int(self.row.prefix_mask.sum() + self.row.input_mask.sum())

    @property
    def bucket(self) -> tuple:
        """Key of what may run together: equal buckets have equal shapes and settings."""
        return self.model.name, self.sampling, self.visual.shape, prompt_length(self.row)

    @property
    def place(self) -> object:
        """Key of the questions that share a row: the same visual after the same texts."""
        if self.sampling.temperature:
            return self
        row = self.row
        return self.visual.key, row.prefix_ids.tobytes(), row.visual_index.tobytes()


def arrange(jobs: list[Job]) -> list[list[Job]]:
    """Group jobs into the rows of a batch."""
    rows: dict[object, list[Job]] = {}
    for job in jobs:
        rows.setdefault(job.place, []).append(job)
    return list(rows.values())


def next_power(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


class Engine:
    """The queue of questions and the thread that answers them.

    Args:
        metrics: Updated by the thread.
        max_batch: Questions at a time; 1: no batching.
        wait_ms: How long the first question of a batch waits for others, milliseconds.
        max_waiting: Most questions in the queue; more are refused.
    """

    def __init__(self, metrics: Metrics, max_batch: int, wait_ms: float, max_waiting: int):
        self.metrics, self.max_batch = metrics, max_batch
        self.wait, self.max_waiting = wait_ms / 1000, max_waiting
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.waiting.set_function(lambda: len(self._waiting))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current batch; waiting questions get an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()
        for job in self._waiting:
            job.deliver(ApiError(503, "the server is shutting down"))

    def submit(self, job: Job) -> None:
        """Queue a question; raise `ApiError` if the queue is full."""
        with self._changed:
            if self._stopped:
                raise ApiError(503, "the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise ApiError(429, "too many questions are waiting; try again later", "busy")
            self._waiting.append(job)
            self._changed.notify()

    def _run(self) -> None:
        while jobs := self._take():
            try:
                self._answer(jobs)
            except Exception:
                # A failing batch must not end the server, nor let its clients wait forever.
                traceback.print_exc(file=sys.stderr)
                for job in jobs:
                    if not (job.last and job.last.finished):
                        job.deliver(ApiError(500, "the model failed; see the server's log"))

    def _take(self) -> list[Job]:
        """Return the next batch, oldest question first; an empty list to stop."""
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if job.wanted]
                if self._stopped:
                    return []
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                alike = [job for job in self._waiting if job.bucket == first.bucket]
                left = first.arrived + self.wait - time.monotonic()
                if len(alike) < self.max_batch and left > 0 and self.max_batch > 1:
                    self._changed.wait(left)
                    continue
                taken = alike[: self.max_batch]
                self._waiting = [job for job in self._waiting if job not in taken]
                return taken

    def _answer(self, jobs: list[Job]) -> None:
        model, groups = jobs[0].model, arrange(jobs)
        self.metrics.batches.observe(len(jobs))
        self.metrics.encoded.inc(len(groups))
        shape = next_power(len(groups)), next_power(max(map(len, groups)))
        new_tokens = np.ones(shape, np.int32)
        for b, group in enumerate(groups):
            new_tokens[b, : len(group)] = [job.max_tokens for job in group]

        def dropped() -> np.ndarray:
            left = np.zeros(shape, bool)
            for b, group in enumerate(groups):
                left[b, : len(group)] = [not job.wanted for job in group]
            return left

        steps = model.answers(
            [group[0].visual for group in groups],
            [model.row([job.question for job in group], group[0].visual) for group in groups],
            [group[0].seed for group in groups],
            jobs[0].sampling,
            new_tokens,
            dropped,
            [[job.stop for job in group] for group in groups],
        )
        for answers in steps:
            for group, row in zip(groups, answers, strict=True):
                for job, answer in zip(group, row, strict=True):
                    if job.wanted and answer != job.last:
                        before = job.last.tokens if job.last else 0
                        self.metrics.tokens.inc(answer.tokens - before)
                        job.last = answer
                        job.deliver(answer)
