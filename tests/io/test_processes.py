"""Worker processes end with their parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import concurrent.futures, multiprocessing, os, time
from tpo_jax.io.processes import end_with_parent

if __name__ == "__main__":
    start = {"initializer": end_with_parent, "initargs": GRACE}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, **start) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 1000).result()
"""


def wait_until_gone(pid: str) -> None:
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 60
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("grace", ["()", "(1000,)"])
def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path, grace) -> None:
    (tmp_path / "parent.py").write_text(PARENT.replace("GRACE", grace))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        pid = parent.stdout.readline().strip()
        parent.kill()
    assert pid
    wait_until_gone(pid)
