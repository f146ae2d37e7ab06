"""Compiled programs: caches for the next start and for the next run of a process, compilation
while the host reads, and compiler options by platform.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax

from tpo_jax.errors import note
from tpo_jax.parallel.sharding import platform

CACHE_HELP = (
    "Keep compiled programs in the user's cache folder for the next start, or where "
    "JAX_COMPILATION_CACHE_DIR says; not on a CPU."
)
CACHE_BYTES = 20 * 2**30  # the step of a 7B model takes some hundred MB

# Functions of each kind that a process keeps for its next runs; a run has one of each.
KEPT = 4

# XLA's CPU back end multiplies bfloat16 matrices as float32 ones. The pass would move that
# conversion out of the scan over layers: a copy of the decoder in float32, twice its own size.
_ON_CPU = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}

Builder = TypeVar("Builder", bound=Callable[..., Any])


def keep_programs(wanted: bool) -> None:
    """Set up JAX's persistent compilation cache; call this after `distributed.start`.

    The cache is `tpo_jax/compilation` below `XDG_CACHE_HOME` or `~/.cache`, and its least recently
    used programs are evicted. A folder that `JAX_COMPILATION_CACHE_DIR` names is used as
    it is. On a CPU there is no cache by default: XLA stores machine code for the processor at hand,
    which another machine with the same home folder may not be able to run, and rejects what
    some processors themselves have stored (https://github.com/jax-ml/jax/issues/38445).

    Args:
        wanted: False: no cache, whatever the environment says.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if jax.config.jax_compilation_cache_dir or jax.default_backend() == "cpu":
        return
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "tpo_jax/compilation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        note(f"{folder}: {error.strerror}; compiled programs are not kept for the next start")
        return
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_meanwhile(
    program: Callable[..., Any],
    mesh: jax.sharding.Mesh,
    *calls: tuple[tuple[Any, ...], dict[str, Any]],
) -> Callable[..., Any]:
    """Start to compile a jitted function in a thread; return a function that waits and calls it.

    A call finds its program if its arguments are those of a call that was announced; otherwise it
    compiles another one.

    Args:
        program: what `jax.jit` returned.
        mesh: the mesh of the calls.
        *calls: the arguments of each, by position and by name, `jax.ShapeDtypeStruct` with
            shardings in place of arrays.
    """

    def work() -> None:
        with jax.set_mesh(mesh):
            for arguments, named in calls:
                program.lower(*arguments, **named).compile()  # type: ignore[attr-defined]

    executor = ThreadPoolExecutor(1, "compile")
    compiled = executor.submit(work)
    executor.shutdown(wait=False)

    @functools.wraps(program)
    def call(*arguments: Any, **named: Any) -> Any:
        compiled.result()
        return program(*arguments, **named)

    return call


def built_once(build: Builder) -> Builder:
    """Cache a function that builds another: equal (hashable) arguments give the same function.

    `jax.jit` finds its programs by the function and the settings it was given: what runs again in
    one process with equal settings, as a round or a row of the study may, is not traced and
    compiled again. The programs of the last `KEPT` functions stay in memory.
    """
    return functools.lru_cache(KEPT)(build)  # type: ignore[return-value]


class LayerwiseProgram:
    """A jitted function that is compiled with the options of the platform it runs on.

    Args:
        function: a pure function.
        **settings: arguments of `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], **settings: Any):
        functools.update_wrapper(self, function)
        self._jit = functools.cache(
            lambda platform: jax.jit(
                function, compiler_options=_ON_CPU if platform == "cpu" else None, **settings
            )
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self._jit(platform())(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the jitted function, such as `lower`."""
        return getattr(self._jit(platform()), name)
