"""TPU slices: published figures of their chips, and devices to compile for."""

import dataclasses
import math
import os

import jax
from jax.experimental import topologies

from tpo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device; a chip is one or two devices in JAX."""

    hbm: float  # GiB that a program may use, the compiler's limit
    flops: float  # bf16, per second
    bandwidth: float  # of HBM, bytes/s
    links: float  # of the interconnect, bytes/s, all links together
    devices: int = 1  # devices of a chip


CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 300e9),
    "v5e": Chip(15.75, 197e12, 819e9, 200e9),
    "v5p": Chip(95.73, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.24, 918e12, 1640e9, 448e9),
    "tpu7x": Chip(94.74, 1153e12, 3690e9, 600e9, devices=2),
}

# Slices that Cloud TPU offers, by the number of chips.
SLICES = {
    "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "tpu7x": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16",
}


def chips_of(topology: str) -> int:
    """Return the number of chips of a slice such as `v5e:4x4`.

    Raises:
        InputError: an unknown topology.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        raise InputError(
            f"--topology={topology} is not of the form KIND:AxB or KIND:AxBxC with KIND one of "
            f"{', '.join(CHIPS)}; v5e:4x4 is a slice of 16 chips"
        )
    if shape not in SLICES[kind].split():
        raise InputError(f"--topology={topology}: slices of {kind} are {SLICES[kind]}")
    return math.prod(map(int, shape.split("x")))


def devices_of(topology: str, slices: int = 1) -> list[jax.Device]:
    """Return the abstract devices of slices such as `v5e:4x4`.

    Raises:
        InputError: an unknown topology, or the compiler is missing or in use.
    """
    chips_of(topology)
    # Nothing runs here: libtpu must not search for a TPU, which takes minutes, nor lock itself.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    megacore = topology.partition(":")[0] in ("v4", "v5p")
    options: dict = {"chip_config_name": "megacore"} if megacore else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:  # the runtime's own, without a common type
        reason = str(error).strip().splitlines()[0]
        if "libtpu" in reason.lower() and "lock" not in reason.lower():
            reason = f"the TPU compiler (pip install libtpu) does not load: {reason}"
        raise InputError(f"--topology={topology}: {reason}") from error
    return list(description.devices)
