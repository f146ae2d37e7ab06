"""What every test may count on: eight CPU devices, exact float32 matrix products, a compilation
cache, and fixtures for the media beside the project.
"""

import collections
import gc
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Commands started as child processes inherit these; accelerators are for benchmarks.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs spend their time in the compiler: unoptimised, as one module and with the older
# emitters of fusions, which jax 0.12 no longer has, it takes a tenth of the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * (importlib.metadata.version("jax") < "0.12"),
)

# OpenCV reads it once; it writes the rendered videos and answers for lmms-eval.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import hypothesis
import jax
import pytest

from tests.commands import stop_commands
from tests.fake_wandb import FakeWandb
from tests.memory import free_programs, resident

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"


# Files that run in the process of another, because they share expensive fixtures and programs.
TOGETHER = {
    "tests/study/test_quickstart.py": "tests/test_notebooks.py",
    "tests/test_multihost.py": "tests/test_train.py",
    "tests/training/test_observability.py": "tests/test_train.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Run the tests of a file in one process, so that fixtures and programs are made once.

    One process at a time can hold libtpu: the tests that need it are in one file.
    """
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, start with the files that have most slow tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = collections.Counter(x.path for x in items if x.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Look for garbage less often, and not among what stays: tracing makes many objects, few of
    them garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def compiled(tmp_path_factory) -> Iterator[Path]:
    """The compilation cache of this process and of the commands that its tests start.

    Each process of `pytest -n` has its own, because JAX writes an entry in place and another one
    may read it half-written; it takes from the others what they wrote some time ago.
    """
    directory = tmp_path_factory.mktemp("compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield directory
    stop_commands()


@pytest.fixture(autouse=True, scope="module")
def take_programs(compiled) -> None:
    """Link the programs that other processes of `pytest -n` compiled before this module."""
    there = {entry.name for entry in compiled.iterdir()}
    for entry in compiled.parents[1].glob(f"popen-gw*/{compiled.name}/*-cache"):
        if entry.name not in there and time.time() - entry.stat().st_mtime > 5:
            (compiled / entry.name).hardlink_to(entry)
            there.add(entry.name)


@pytest.fixture(autouse=True, scope="module")
def drop_programs() -> Iterator[None]:
    """Free the programs after a module where they take much: those of all tests take 6 GB."""
    yield
    if resident() > 2e9:
        free_programs()
    stop_commands(all_of_them=False)


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/{name} is missing: this test reads it from beside the project")
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
    """All benchmarks with seven questions on three rendered videos; tests only read it."""
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
    """Return a function that runs something up to its call of one jitted function of a module and
    returns the program that this call would compile on TPUs.
    """

    def lower(module, name: str, run: Callable[[], object]) -> str:
        class Lowered(Exception):
            pass

        from tpo_jax.parallel import attention, programs

        real = getattr(module, name)

        def stop(*arguments, **options):
            raise Lowered(real.trace(*arguments, **options).lower(lowering_platforms=("tpu",)))

        monkeypatch.setattr(module, name, stop)
        monkeypatch.setattr(attention, "platform", lambda mesh=None: "tpu")
        monkeypatch.setattr(programs, "platform", lambda: "tpu")
        with pytest.raises(Lowered) as found:
            run()
        return found.value.args[0].as_text()

    return lower


@pytest.fixture(scope="session")
def fake_wandb() -> FakeWandb:
    """Weights & Biases as `finished_run` finds it."""
    return FakeWandb()


@pytest.fixture(scope="session")
def finished_run(tiny_world, fake_wandb, tmp_path_factory) -> Path:
    """The working directory of the tiny run, uninterrupted; Weights & Biases got its metrics."""
    from tests.tiny_run import tiny_config
    from tpo_jax.train import train
    from tpo_jax.training.watch import Watch

    workdir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake_wandb)
        patch.delenv("WANDB_MODE", raising=False)
        patch.setenv("WANDB_API_KEY", fake_wandb.key)
        train(tiny_config(tiny_world), workdir, Watch(wandb_project="tpo"))
    return workdir


@pytest.fixture(scope="session")
def smoke_quickstart(tmp_path_factory) -> tuple[Path, str]:
    """The working directory of the quickstart in its smallest size, and what it printed."""
    workdir = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "tpo_jax.quickstart", "--scale=smoke", f"--workdir={workdir}"],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture
def start_command() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a command as a child process with environment variables of its
    own; the child is killed at the end of the test.
    """
    children = []

    def start(command: str, *arguments: str, variables: dict[str, str]) -> subprocess.Popen:
        child = subprocess.Popen(
            [sys.executable, "-m", f"tpo_jax.{command}", *arguments],
            cwd=TESTS.parent,
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
def tiny_arguments(tiny_world, tmp_path) -> list[str]:
    """Return the arguments of `train` on the tiny run."""
    config = tmp_path / "config.py"
    config.write_text(
        "import pathlib\n\nfrom tests.tiny_run import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config(pathlib.Path({str(tiny_world)!r}))\n"
    )
    return [f"--config={config}"]


@pytest.fixture
def tiny_variables() -> dict[str, str]:
    """Return the environment variables of a process that computes as this one does."""
    return {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_NUM_CPU_DEVICES": "8"}


@pytest.fixture
def tiny_command(tiny_arguments, tiny_variables, start_command) -> Callable[..., subprocess.Popen]:
    """Return a function that starts `train` on the tiny run, with more flags, on some devices."""

    def start(*arguments: str, devices: int = 8) -> subprocess.Popen:
        variables = tiny_variables | {"JAX_NUM_CPU_DEVICES": str(devices)}
        return start_command("train", *tiny_arguments, *arguments, variables=variables)

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
        pytest.skip(f"mounting a small disk is not permitted: {error}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
