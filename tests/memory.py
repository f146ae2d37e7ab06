"""Memory of compiled programs."""

import ctypes
import gc
import os
import threading
from pathlib import Path

import jax


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for_compilations() -> None:
    """Wait for steps that are still compiled, of runs that ended with an error before."""
    for thread in threading.enumerate():
        if thread.name.startswith("compile"):
            thread.join()


def free_programs() -> None:
    """Free all compiled programs and return their memory to the system."""
    wait_for_compilations()
    jax.clear_caches()
    gc.collect()
    # glibc keeps freed memory unless it is told to return it.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
