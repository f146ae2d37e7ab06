"""Several processes that run one program: start-up, exchange of values, and a common stop."""

import json
import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tpo_jax.errors import InputError

FLAG_HELP = (
    "How this process joins the others: empty for a single process; 'auto' detects the cluster "
    "(Cloud TPU, Slurm, Kubernetes, Open MPI); 'HOST:PORT,COUNT,INDEX' is the address of process "
    "0, the number of processes and the index of this one."
)


def start(how: str) -> None:
    """Connect the processes; call this before anything asks for a device.

    Args:
        how: see `FLAG_HELP`.

    Raises:
        InputError: `how` has another form, or no cluster is detected.
    """
    if not how:
        return
    if how == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                "--distributed=auto: no cluster detected; use HOST:PORT,COUNT,INDEX"
            ) from error
        return
    address, *numbers = how.split(",")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or ":" not in address:
        raise InputError(f"--distributed={how} is neither 'auto' nor HOST:PORT,COUNT,INDEX")
    count, index = map(int, numbers)
    if index >= count:
        raise InputError(f"--distributed={how}: INDEX counts from 0 and is below COUNT")
    jax.distributed.initialize(address, count, index)


def gather(value: Any) -> list[Any]:
    """Return the values of all processes in their order; all processes must call this together.

    Args:
        value: must be serialisable as JSON.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)])).reshape(-1)
    # Powers of two, so that few programs are compiled.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def lead(function: Callable[[], Any]) -> Any:
    """Call a function on process 0 and return its result on all processes.

    Args:
        function: its result must be serialisable as JSON.

    Raises:
        InputError: on all processes, where the function raises that or an `OSError`.
    """
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = function()
        except (InputError, OSError) as caught:
            error = caught
    value, said = gather([value, error and str(error)])[0]
    if error is not None:
        raise error
    if said is not None:
        raise InputError(said)
    return value


class StopRequest:
    """A context in which SIGTERM and SIGINT ask the run to stop instead of killing it.

    With several processes only SIGTERM does, sent to any of them: JAX passes it on, so that all
    stop after the same step.
    """

    def __enter__(self) -> "StopRequest":
        self._noted = False
        self._alone = jax.process_count() == 1
        # JAX handles SIGTERM itself where it connects processes.
        signals = (signal.SIGTERM, signal.SIGINT) if self._alone else ()
        self._previous = {s: signal.signal(s, self._note) for s in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self._noted = True

    def reached(self, step: int) -> bool:
        """Return whether to stop after this step; all processes must ask at every step."""
        return self._noted if self._alone else multihost_utils.reached_preemption_sync_point(step)
