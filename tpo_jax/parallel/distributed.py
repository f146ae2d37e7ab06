"""Several processes that run one program: how they find each other, and how they stop together."""

import signal

import jax
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
