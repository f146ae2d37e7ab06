"""A program compiled for a TPU slice: the memory it takes and the work it does."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from tpo_jax.io.files import read_json_object, write_json
from tpo_jax.planning import hlo
from tpo_jax.planning.chips import Chip

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of a program, for one device."""

    peak: float  # bytes; where it does not fit, what it needs
    memory: dict[str, float] = dataclasses.field(default_factory=dict)  # by kind; empty: no fit
    work: hlo.Work | None = None  # None: not compiled, or jaxlib cannot read the program
    compiled: jax.stages.Compiled | None = None  # None: it does not fit, or comes from a cache

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Return how long a run takes each unit of a chip at its peak rate, in seconds."""
        if not self.work:
            return {}
        received = sum(size for _, size in self.work.collectives.values())
        return {
            "compute": self.work.flops / chip.flops,
            "memory": self.work.hbm_bytes / chip.bandwidth,
            "links": received / chip.links,
        }


def compile_program(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, steps: int = 0
) -> Program:
    """Compile for the devices of a mesh and measure.

    Args:
        steps: of `hlo.work`.
    """
    try:
        with jax.set_mesh(mesh):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return Program(memory_asked(error))
    analysis = compiled.memory_analysis()
    kinds = ("argument", "output", "alias", "temp")
    memory = {kind: float(getattr(analysis, f"{kind}_size_in_bytes")) for kind in kinds}
    try:
        work = hlo.work(compiled.as_text(), steps)
    except jax.errors.JaxRuntimeError as error:
        # jaxlib 0.10.2 cannot read some of what libtpu 0.0.51 writes for tpu7x and v5p.
        if "RET_CHECK" not in str(error):
            raise
        work = None
    return Program(float(analysis.peak_memory_in_bytes), memory, work, compiled)


@contextlib.contextmanager
def without_source_lines() -> Iterator[None]:
    """Leave file names and line numbers out of what is lowered, so that it is the same anywhere.

    They are part of the text of a Pallas kernel.
    """
    frames = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)


def cached_program(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, folder: Path) -> Program:
    """Return the figures of a program that was compiled before, or compile it and keep them.

    The key is the program itself, the devices, the versions and settings of the compilers, and the
    code that reads the figures.

    Args:
        lowered: under `without_source_lines`.
        folder: of the figures; made where it is missing.
    """
    devices = [
        (device.device_kind, device, getattr(device, "slice_index", 0))
        for device in mesh.devices.flat
    ]
    versions = [importlib.metadata.version(package) for package in ("jaxlib", "libtpu")]
    settings = os.environ.get("LIBTPU_INIT_ARGS", "")
    reader = Path(hlo.__file__).read_text(encoding="utf-8")
    key = lowered.as_text(), repr(devices), *versions, settings, reader
    path = folder / (hashlib.sha256("\0".join(key).encode()).hexdigest() + ".json")
    if path.exists():
        found = read_json_object(path)
        work = found["work"] and hlo.Work(**found["work"])
        return Program(found["peak"], found["memory"], work)
    program = compile_program(lowered, mesh)
    fields = "flops", "recomputed", "scores", "hbm_bytes", "collectives"
    work = program.work and {name: getattr(program.work, name) for name in fields}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"peak": program.peak, "memory": program.memory, "work": work})
    return program


def memory_asked(error: jax.errors.JaxRuntimeError) -> float:
    """Return the bytes per device that a program needs, from the error that it does not fit.

    Raises:
        JaxRuntimeError: the given error, if it says something else.
    """
    asked = re.search(r"([\d.]+)([KMGT])\)? (?:of|exceeds available)", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not asked:
        raise error
    return float(asked[1]) * {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[asked[2]]
