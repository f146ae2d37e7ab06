"""The step on slices that are processes, with a group of devices each:
`python -m tests.groups PORT INDEX FILE`.

Each of the processes runs it with its own INDEX; the first writes FILE.
"""

import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from tests.batches import SMALL, random_batch
from tests.random_params import random_params
from tpo_jax.models.batch import Batch
from tpo_jax.objectives.preference import Objective
from tpo_jax.parallel import distributed
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings, to_global
from tpo_jax.training.state import new_state
from tpo_jax.training.step import Compute, make_step

GROUPS, DEVICES, ROWS = 2, 2, 8  # groups, devices of each, rows of all


def one_step(mesh: jax.sharding.Mesh, rows: Batch) -> dict:
    """Return loss, gradients and parameters of one step, NumPy.

    Args:
        rows: this process's part of the batch.
    """
    optimizer = optax.adamw(1e-3, b1=0.9)
    params = random_params(SMALL)
    initial = lambda params: new_state(params, optimizer, ("tower",))  # noqa: E731
    with jax.set_mesh(mesh):
        shardings = parameter_shardings(mesh, jax.eval_shape(initial, params))
        state = jax.jit(initial, out_shardings=shardings)(params)
        step = make_step(SMALL, Objective(beta=0.3, alpha=0.5), Compute("float32"), optimizer)
        state, metrics = jax.jit(step)(state, to_global(rows, mesh))
        found = {
            "loss": metrics["losses/total"],
            "gradients": jax.tree.map(lambda x: x / 0.1, optax.tree.get(state.opt, "mu")),
            "params": state.params,
        }
        whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))(found)
    return jax.device_get(whole)


def main(port: str, index: str, file: str) -> None:
    """Take one step with the other processes."""
    distributed.start(f"127.0.0.1:{port},{GROUPS},{index}")
    slices = [device.process_index for device in jax.devices()]
    mesh = make_mesh({"data": GROUPS, "fsdp": -1, "tensor": 1, "context": 1}, slices=slices)
    places = np.vectorize(lambda device: device.process_index)(mesh.devices)
    assert (places.reshape(GROUPS, DEVICES) == [[0, 0], [1, 1]]).all()
    first = jax.process_index() * ROWS // GROUPS
    mine = slice(first, first + ROWS // GROUPS)
    found = one_step(mesh, jax.tree.map(lambda x: x[mine], random_batch(B=ROWS)))
    if jax.process_index() == 0:
        np.savez(file, *jax.tree.leaves(found))
    multihost_utils.sync_global_devices("written")


if __name__ == "__main__":
    main(*sys.argv[1:])
