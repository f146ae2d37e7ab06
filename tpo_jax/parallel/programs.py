"""Jitted functions that read the weights of a scan layer by layer, on the CPU, too."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from tpo_jax.parallel.sharding import platform

# XLA's CPU back end multiplies bfloat16 matrices as float32 ones. The pass would move that
# conversion out of the scan over layers: a copy of the decoder in float32, twice its own size.
_ON_CPU = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


class LayerwiseProgram:
    """What `jax.jit` makes of a function, compiled with the options of the platform it is for.

    Args:
        function: a pure function.
        settings: of `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], **settings: Any):
        functools.update_wrapper(self, function)
        self._jit = functools.cache(
            lambda platform: jax.jit(
                function, compiler_options=_ON_CPU if platform == "cpu" else None, **settings
            )
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self._jit(platform())(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the jitted function, such as `lower`."""
        return getattr(self._jit(platform()), name)
