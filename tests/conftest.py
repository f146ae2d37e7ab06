"""What every test may count on: eight CPU devices, exact float32 matrix products, and fixtures for
the media beside the project.
"""

import os
from pathlib import Path

# Doors started as child processes inherit it; accelerators are for benchmarks.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs spend their time in the compiler: unoptimised code makes the tests three times faster.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process at a time can hold libtpu: those tests form one group of `--dist loadgroup`."""
    for item in items:
        if item.get_closest_marker("tpu_compiler"):
            item.add_marker(pytest.mark.xdist_group("tpu_compiler"))


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/{name} is not there: this test needs it beside the project")
    return SHARED / name


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """The directory of real clips beside the project."""
    return _shared("media")


@pytest.fixture(scope="session")
def qwen2_tokenizer() -> Path:
    """The directory of the Qwen2 `tokenizer.json` beside the project."""
    return _shared("qwen2_tokenizer")
