"""Several processes that run one program: how they find each other, what they tell each other, and
how they stop together.
"""

import json
import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tpo_jax.errors import InputError

FLAG_HELP = (
    "How this process joins the others: empty: it is alone; 'auto': found out from the machine "
    "(Cloud TPU, Slurm, Kubernetes, Open MPI); 'HOST:PORT,COUNT,INDEX': address of process 0, how "
    "many there are and which one this is."
)


def start(how: str) -> None:
    """Connects the processes; call it before anything asks for a device.

    Args:
        how: see `FLAG_HELP`.

    Raises:
        InputError: not of that form, or nothing to be found out.
    """
    if not how:
        return
    if how == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                "--distributed=auto: no cluster found here; give HOST:PORT,COUNT,INDEX"
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
    """What every process gives, in their order; every process calls it at the same place.

    Args:
        value: as JSON can hold it.
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
    """What `function` returns on the first process, which alone calls it, on every process.

    Args:
        function: its result is such as JSON can hold.

    Raises:
        InputError: on every process, when it raises that or an `OSError` on the first.
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
    """While entered, SIGTERM and SIGINT ask the run to stop instead of killing it.

    With several processes SIGTERM alone does, sent to any of them: JAX passes it on, so that all
    stop after the same step.
    """

    def __enter__(self) -> "StopRequest":
        self._noted = False
        self._alone = jax.process_count() == 1
        # JAX listens to SIGTERM itself where it connects processes.
        signals = (signal.SIGTERM, signal.SIGINT) if self._alone else ()
        self._previous = {s: signal.signal(s, self._note) for s in signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, *_) -> None:
        self._noted = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; every process asks at every step, all get one answer."""
        return self._noted if self._alone else multihost_utils.reached_preemption_sync_point(step)
