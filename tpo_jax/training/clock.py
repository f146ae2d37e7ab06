"""Where the time of a run goes: the devices' work, and what the host did while they were idle."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

SPANS = ("input_wait", "compile", "checkpoint", "eval")
_COMPILED = "/jax/core/compile/backend_compile_duration"


def split(
    start: float,
    end: float,
    spans: Sequence[tuple[str, float, float]],
    busy: Sequence[tuple[float, float]],
) -> dict[str, float]:
    """Split a time span by cause; what the host does while the devices work counts as `step`.

    Args:
        start: Seconds on some clock.
        end: Seconds on the same clock, like all that follow.
        spans: What the host did: name of `SPANS`, from, to; disjoint, between start and end.
        busy: When the devices worked: from, to; disjoint, in order, between start and end.

    Returns:
        Seconds: `step`, while the devices worked; each of `SPANS`, while they waited for it;
        `other`, the rest. They add up to `end - start`.
    """
    edges = np.array([start, *(time for pair in busy for time in pair), end])
    worked = np.cumsum(np.diff(edges, prepend=start) * (np.arange(len(edges)) % 2 == 0))
    worked[-1] = worked[-2]
    seconds = {"step": float(worked[-1])} | dict.fromkeys(SPANS, 0.0)
    for name, begin, finish in spans:
        hidden = np.interp(finish, edges, worked) - np.interp(begin, edges, worked)
        seconds[name] += finish - begin - float(hidden)
    return seconds | {"other": end - start - sum(seconds.values())}


class StepClock:
    """Times the steps of an asynchronous loop, which it keeps at most two steps ahead.

    A separate thread waits for the end of every step, so that the loop learns when the devices
    became idle without waiting for them.
    """

    def __init__(self) -> None:
        self._watcher = ThreadPoolExecutor(1, "step-clock")
        self._start = time.monotonic()
        self._spans: list[tuple[str, float, float]] = []
        self._steps: list[tuple[float, Future[float]]] = []
        self._compiled, self._compiling = 0, 0.0  # programs, seconds
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILED:
            self._compiled += 1
            self._compiling += seconds

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the block's time as `name`, one of `SPANS`; compiling in `eval` as `compile`."""
        begin, compiling = time.monotonic(), self._compiling
        yield
        end = time.monotonic()
        if name == "eval":
            compiled = min(begin + self._compiling - compiling, end)
            self._spans.append(("compile", begin, begin := compiled))
        self._spans.append((name, begin, end))

    def dispatch(self, step_fn: Callable[..., tuple[Any, dict]], *arguments: Any) -> Any:
        """Call `step_fn` and return what it returns, state and metrics, once the step before this
        one has finished: two steps in flight keep the devices busy, more would only hold memory.
        """
        before, begin = self._compiled, time.monotonic()
        state, metrics = step_fn(*arguments)
        if self._compiled > before:
            self._spans.append(("compile", begin, begin := time.monotonic()))
        self._steps.append((begin, self._watcher.submit(_end, metrics)))
        if len(self._steps) > 1:
            self._steps[-2][1].result()
        return state, metrics

    def split(self) -> dict[str, float]:
        """Wait for the steps in flight; return `split` since the last call, or since the start."""
        busy, free = [], self._start
        for begin, end in self._steps:
            busy.append((max(begin, free), free := end.result()))
        now = time.monotonic()
        seconds = split(self._start, now, self._spans, busy)
        self._start, self._spans, self._steps = now, [], []
        return seconds

    def close(self) -> None:
        """End the thread."""
        jax.monitoring.unregister_event_duration_listener(self._note)
        self._watcher.shutdown()


def _end(metrics: dict) -> float:
    jax.block_until_ready(metrics)
    return time.monotonic()
