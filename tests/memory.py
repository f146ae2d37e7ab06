"""Memory of compiled programs."""

import ctypes
import gc

import jax


def free_programs() -> None:
    """Free all compiled programs and return their memory to the system."""
    jax.clear_caches()
    gc.collect()
    # glibc keeps freed memory unless it is told to return it.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
