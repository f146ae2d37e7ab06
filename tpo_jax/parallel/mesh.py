"""The device mesh: axes `data`, `fsdp`, `tensor`, `context`."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from tpo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1: all that are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1


AXES = tuple(field.name for field in dataclasses.fields(MeshShape))


def mesh_shape(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    """Return the axis sizes in the order of `AXES`; a size of -1 takes the remaining devices.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or more than one is -1.
    """
    shape = [sizes[axis] for axis in AXES]
    known = math.prod(size for size in shape if size != -1)
    wish = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise InputError(f"mesh ({wish}): sizes are positive, and at most one is -1")
    if shape.count(-1) and num_devices % known == 0:
        shape[shape.index(-1)] = num_devices // known
    if math.prod(shape) != num_devices:
        raise InputError(
            f"mesh ({wish}) does not fit {num_devices} devices; the sizes must multiply to that"
        )
    return tuple(shape)


def make_mesh(
    sizes: dict[str, int],
    devices: Sequence[jax.Device] | None = None,
    slices: Sequence[int] | None = None,
) -> jax.sharding.Mesh:
    """Make a mesh over all devices, or the given ones, with every axis automatic.

    Args:
        sizes: `{"data": 1, "fsdp": -1, "tensor": 1, "context": 1}`; -1 takes the rest.
        devices: by default all devices of all processes.
        slices: index of the slice of every device; the network between slices is slow. By default
            the `slice_index` that TPU devices have, and a single slice for other devices.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or several slices do not
            divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    slices = [getattr(x, "slice_index", 0) for x in devices] if slices is None else slices
    shape = mesh_shape(sizes, len(devices))
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    count = len(set(slices))
    if count == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    if shape[0] % count:
        raise InputError(
            f"mesh.data={shape[0]} must be a multiple of the {count} slices: only rows are split "
            "over the slow network between them"
        )
    within = (shape[0] // count, *shape[1:])
    grids = [
        mesh_utils.create_device_mesh(
            within,
            [x for x, i in zip(devices, slices, strict=True) if i == index],
            allow_split_physical_axes=True,  # as `jax.make_mesh`
        )
        for index in sorted(set(slices))
    ]
    return jax.sharding.Mesh(np.concatenate(grids), AXES, axis_types=types)
