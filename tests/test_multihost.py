"""Real processes with real collectives between them: two of four devices each, and two that
are the slices of one mesh.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.batches import random_batch
from tests.groups import DEVICES, GROUPS, ROWS, one_step
from tests.tiny_run import final_state, metrics, tiny_config
from tpo_jax.errors import InputError
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.train import train

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_close(found, expected):
    """Assert equality up to rounding: Gloo sums gradients between processes in another order than
    XLA does inside one.

    The absolute tolerance is for the key biases: softmax does not depend on them, so their gradient
    is rounding alone, which Adam scales to whole steps.
    """
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        error = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        assert error <= 5e-6 * np.linalg.norm(np.asarray(b, np.float64)) + 2e-6


def test_two_processes_stop_together_and_one_resumes(
    finished_run, tiny_world, tiny_command, tmp_path
):
    port, work = free_port(), tmp_path / "work"
    children = [
        tiny_command(f"--workdir={work}", f"--distributed=127.0.0.1:{port},2,{i}", devices=4)
        for i in (0, 1)
    ]
    path, deadline = work / "metrics.jsonl", time.monotonic() + 600
    while all(child.poll() is None for child in children) and time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= 2:
            os.kill(children[1].pid, signal.SIGTERM)  # one gets the signal, both stop
            break
        time.sleep(0.02)
    outputs = [child.communicate(timeout=600) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    stopped = metrics(work)[-1]["step"]
    assert 2 <= stopped < 6
    assert f"stopped at step {stopped}; run again to resume" in outputs[0][1]
    # Arrays are written by both, metrics and results by one.
    state = work / "checkpoints" / str(stopped) / "state"
    assert {p.name for p in state.glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    assert [record["step"] for record in metrics(work)] == list(range(1, stopped + 1))
    assert "  1/6  " in outputs[0][1] and "  1/6  " not in outputs[1][1]
    assert not any(str(work) in out for out, _ in outputs)  # there is no model yet
    assert json.loads((work / "config.json").read_text())["data"]["num_frames"] == 8

    # One process of eight devices resumes.
    assert train(tiny_config(tiny_world), work) == work / "model"
    found, expected = metrics(work), metrics(finished_run)
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert found[0]["losses/total"] == pytest.approx(np.log(2), abs=1e-6)
    for a, b in zip(found, expected, strict=True):
        assert a["losses/total"] == pytest.approx(b["losses/total"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a.keys() == b.keys()
        for name in ("eval/losses/total", "eval/rewards/margins", "eval/pairs"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-3)
    assert_close(final_state(work)["params"], final_state(finished_run)["params"])


def test_two_slices_take_the_step_of_one(tmp_path):
    port, file = free_port(), tmp_path / "step.npz"
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.groups", str(port), str(index), str(file)],
            cwd=Path(__file__).parents[1],
            env=os.environ
            | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_NUM_CPU_DEVICES": str(DEVICES)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(GROUPS)
    ]
    try:
        errors = [child.communicate(timeout=600)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert not any(child.returncode for child in children), errors

    sizes = {"data": 1, "fsdp": DEVICES, "tensor": 1, "context": 1}
    expected = one_step(make_mesh(sizes, jax.devices()[:DEVICES]), random_batch(B=ROWS))
    with np.load(file) as archive:
        found = jax.tree.unflatten(
            jax.tree.structure(expected), [archive[name] for name in archive.files]
        )
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert_close(found["gradients"], expected["gradients"])
    assert_close(found["params"], expected["params"])


def test_only_data_crosses_the_slices():
    devices, sizes = jax.devices(), {"data": 2, "fsdp": -1, "tensor": 1, "context": 2}
    slices = [device.id % 2 for device in devices]
    mesh = make_mesh(sizes, devices, slices)
    assert mesh.devices.shape == (2, 2, 1, 2)
    for index in (0, 1):
        assert {device.id % 2 for device in mesh.devices[index].flat} == {index}
    with pytest.raises(InputError, match="mesh.data=1 must be a multiple of the 2 slices"):
        make_mesh(sizes | {"data": 1}, devices, slices)
