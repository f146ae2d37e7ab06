"""Find the mesh, remat policy, micro-batches and moments with which a step is fastest on a slice.

Settings are ordered by the least time that a formula gives them. They are compiled in that order,
until the next one cannot be expected to be faster than the fastest that fits.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.parallel.sharding import ROWS, check_heads, check_rows
from tpo_jax.parallel.splash import LANES
from tpo_jax.planning.chips import Chip
from tpo_jax.planning.estimate import least_memory, least_seconds
from tpo_jax.planning.plan import Plan, abstract_state, batch_shape
from tpo_jax.planning.program import GIB
from tpo_jax.training import experiment

# From the least memory to the fewest FLOPs; what saves the most FLOPs per byte is kept first.
REMATS = (
    "full",
    "attention:save",
    "attention:save,residual:save",
    "qkv:save,attention:save,residual:save",
    "qkv:save,attention:save,residual:save,mlp:save",
)
MOMENTS = ("float32", "bfloat16")
MOST = 12  # compilations


class Setting(NamedTuple):
    """What a search varies, with lower bounds on a step's time and memory."""

    mesh: tuple[int, ...]  # sizes of `AXES`
    remat: str
    micro_batches: int
    moments: str
    seconds: float  # of a step
    bytes: float  # of a device

    @property
    def changes(self) -> dict[str, Any]:
        """Return the config fields that it sets."""
        return {
            **{f"mesh.{axis}": size for axis, size in zip(AXES, self.mesh, strict=True)},
            "compute.remat": self.remat,
            "compute.micro_batches": self.micro_batches,
            "train.moments": self.moments,
        }

    @property
    def flags(self) -> str:
        """Return the command line that sets them."""
        return " ".join(f"--config.{name}={value}" for name, value in self.changes.items())


def settings(
    config: ConfigDict, model: ModelConfig, devices: Sequence[jax.Device], chip: Chip
) -> list[Setting]:
    """Return every setting that the experiment can run with on these devices, the fastest first.

    Of two that are equally fast by formula, the one with whole layers on a device, float32 moments,
    fewer micro-batches and less memory comes first.
    """
    found: list[Setting] = []
    for sizes in _meshes(len(devices)):
        with contextlib.suppress(InputError):  # the slices, heads or weights do not divide
            mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
            check_heads(model.decoder.heads, model.decoder.kv_heads, mesh)
            found += _on_mesh(config, model, mesh, chip)

    def order(setting: Setting) -> tuple:
        layers = setting.mesh[AXES.index("tensor")]
        moments = MOMENTS.index(setting.moments)
        return setting.seconds, layers, moments, setting.micro_batches, setting.bytes

    return sorted(found, key=order)


def _meshes(devices: int) -> Iterator[tuple[int, ...]]:
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, fsdp, tensor in itertools.product(divisors, repeat=3):
        if devices % (data * fsdp * tensor) == 0:
            yield data, fsdp, tensor, devices // (data * fsdp * tensor)


def _on_mesh(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, chip: Chip
) -> Iterator[Setting]:
    """Yield the settings of a mesh; InputError: none can run."""
    sizes = tuple(mesh.shape[axis] for axis in AXES)
    read = experiment.read(config)
    shape, together = batch_shape(read, model), read.objective.rows_together
    context = mesh.shape["context"]
    if shape.prefix % (LANES * (2 * context if context > 1 else 1)):
        return
    parts = mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]]
    check_rows(shape.rows, mesh)
    most = shape.rows // parts
    micros = [1, *(n for n in range(2, most + 1) if shape.rows % (parts * n * together) == 0)]
    for moments in MOMENTS:
        changed = functools.partial(_changed, config, moments=moments)
        state = abstract_state(changed(REMATS[0], 1), model, mesh)[1]
        for remat, micro in itertools.product(REMATS, micros):
            wanted = changed(remat, micro)
            yield Setting(
                *(sizes, remat, micro, moments),
                seconds=least_seconds(wanted, model, shape, state, mesh, chip),
                bytes=least_memory(wanted, model, shape, state, mesh),
            )


def _changed(
    config: ConfigDict, remat: str, micro_batches: int, moments: str
) -> experiment.Experiment:
    config = config.copy_and_resolve_references()
    config.compute.remat, config.compute.micro_batches = remat, micro_batches
    config.train.moments = moments
    return experiment.read(config)


def fastest(
    compile_at: Callable[[Setting], Plan],
    found: Sequence[Setting],
    limit: float,
    tell: Callable[[str], None],
) -> tuple[Setting, Plan]:
    """Find the setting with the lowest roofline time.

    Compiled programs say how far the formulas are off. Memory beyond them is working memory, which
    depends on the mesh and on the rows at a time; settings that would not fit with it are left out.
    Time is taken to be off by the smallest factor so far.

    Args:
        compile_at: returns the plan of a setting; called at most `MOST` times.
        found: of `settings`.
        limit: bytes of a device.
        tell: called with a line on what is left out.

    Returns:
        The fastest setting that fits, and its plan; where none does, the smallest.

    Raises:
        InputError: there is no setting.
    """
    if not found:
        raise InputError(
            "no mesh of this slice can run the experiment: another train.batch_size, or a "
            "data.prefix_multiple of 256 times the devices that share a row, may"
        )
    more: dict[tuple, float] = {}  # bytes beyond the formula, by mesh and micro-batches
    plans: dict[Setting, Plan] = {}

    def expected(setting: Setting) -> float:
        known = more.get((setting.mesh, setting.micro_batches), min(more.values(), default=0.0))
        return setting.bytes + known

    def compiled(setting: Setting) -> Plan:
        tell(f"compiling {setting.flags}")
        plan = plans[setting] = compile_at(setting)
        more[setting.mesh, setting.micro_batches] = plan.peak - setting.bytes
        return plan

    possible = [setting for setting in found if setting.bytes <= limit]
    tell(f"{len(found)} settings, {len(possible)} of them within the limit by formula")
    best: Setting | None = None
    factor = 1.0
    for setting in possible:
        if best and factor * setting.seconds >= _seconds(plans[best]):
            break
        if expected(setting) > limit:
            continue
        if len(plans) == MOST:
            tell(f"{MOST} settings compiled: the rest is left out")
            break
        plan = compiled(setting)
        if plan.fits:
            slower = [_seconds(plan) / s.seconds for s, plan in plans.items() if plan.fits]
            factor = max(1.0, min(slower))
        if plan.fits and (not best or _seconds(plan) < _seconds(plans[best])):
            best = setting
    if best:
        return best, plans[best]
    smallest = min(found, key=expected)
    plan = plans.get(smallest) or compiled(smallest)
    if not plan.fits:
        tell(f"nothing fits: {(plan.peak - limit) / GIB:.2f} GiB are missing with the smallest")
    return smallest, plan


def _seconds(plan: Plan) -> float:
    return max(plan.seconds.values())
