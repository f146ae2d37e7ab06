"""What every test may count on: eight CPU devices, exact float32 matrix products, and fixtures for
the media beside the project.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Doors started as child processes inherit it; accelerators are for benchmarks.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs spend their time in the compiler: unoptimised code makes tests three times as fast.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# OpenCV reads it once; it writes the rendered videos and answers for lmms-eval.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

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
def shared_cases() -> Path:
    """The directory of small awkward inputs beside the project."""
    return _shared("cases")


@pytest.fixture(scope="session")
def qwen2_tokenizer() -> Path:
    """The directory of the Qwen2 `tokenizer.json` beside the project."""
    return _shared("qwen2_tokenizer")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    """Rendered videos, pairs, a tokenizer and shards; see `tests/tiny_run.py`."""
    from tests.tiny_run import make_world

    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


@pytest.fixture(scope="session")
def benchmark_folders(tmp_path_factory) -> Path:
    """All benchmarks with seven questions on three rendered videos; not to be written to."""
    from tests.evaluation.folders import make_folders
    from tpo_jax.video.decode import probe
    from tpo_jax.worlds.world import make_videos

    root = tmp_path_factory.mktemp("benchmarks")
    made = make_videos(root / "made", seed=2, seconds=[12, 40, 20], workers=1)
    videos = [Path(video.path) for video in made]
    make_folders(root, videos, [probe(video).duration for video in videos])
    return root


@pytest.fixture
def program_for_tpus(monkeypatch) -> Callable[..., str]:
    """Runs something up to its call of one jitted function of a module, and gives the program that
    this call would compile on TPUs.
    """

    def lower(module, name: str, run: Callable[[], object]) -> str:
        class Lowered(Exception):
            pass

        real = getattr(module, name)

        def stop(*arguments, **options):
            raise Lowered(real.trace(*arguments, **options).lower(lowering_platforms=("tpu",)))

        monkeypatch.setattr(module, name, stop)
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        with pytest.raises(Lowered) as found:
            run()
        return found.value.args[0].as_text()

    return lower


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Iterator[Path]:
    """Keeps what is compiled while it is in use, for other runs of the same step."""
    directory = tmp_path_factory.mktemp("compiled")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield directory
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def finished_run(tiny_world, compiled, tmp_path_factory) -> Path:
    """The working directory of the tiny run, uninterrupted."""
    from tests.tiny_run import tiny_config
    from tpo_jax.train import train

    workdir = tmp_path_factory.mktemp("finished")
    train(tiny_config(tiny_world), workdir)
    return workdir


@pytest.fixture(scope="session")
def smoke_quickstart(tmp_path_factory) -> tuple[Path, str]:
    """The working directory of the quickstart in its smallest size, and what it printed."""
    workdir = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "tpo_jax.quickstart", "--scale=smoke", f"--workdir={workdir}"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture
def start_command() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a door as a child with variables of its own; none outlives the test."""
    children = []

    def start(door: str, *arguments: str, variables: dict[str, str]) -> subprocess.Popen:
        child = subprocess.Popen(
            [sys.executable, "-m", f"tpo_jax.{door}", *arguments],
            cwd=Path(__file__).resolve().parents[1],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def tiny_command(tiny_world, compiled, tmp_path, start_command) -> Callable[..., subprocess.Popen]:
    """Starts the train door on the tiny run, with more flags and the number of devices."""
    variables = {
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    config = tmp_path / "config.py"
    config.write_text(
        "import pathlib\n\nfrom tests.tiny_run import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config(pathlib.Path({str(tiny_world)!r}))\n"
    )

    def start(*arguments: str, devices: int = 8) -> subprocess.Popen:
        here = variables | {"JAX_NUM_CPU_DEVICES": str(devices)}
        return start_command("train", f"--config={config}", *arguments, variables=here)

    return start


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1.8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk needs leave to mount one: {error}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
