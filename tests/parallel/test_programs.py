"""Where compiled programs are kept, what is built once for them, and programs that are compiled
before their first call.
"""

import gc
import os
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tpo_jax.errors import InputError
from tpo_jax.parallel.mesh import MeshShape, make_mesh
from tpo_jax.parallel.programs import (
    CACHE_BYTES,
    KEPT,
    built_once,
    compile_meanwhile,
    keep_programs,
)

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that starts a command on a platform and returns where its cache is."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def start(platform: str, wanted: bool = True, users: Path | None = None) -> Path | None:
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        jax.config.update("jax_compilation_cache_dir", users and str(users))
        keep_programs(wanted)
        found = jax.config.jax_compilation_cache_dir
        return Path(found) if found and jax.config.jax_enable_compilation_cache else None

    yield start
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_programs_are_kept_in_the_users_cache_folder(machine, monkeypatch, tmp_path, platform):
    assert machine(platform) == tmp_path / ".cache/tpo_jax/compilation"
    assert jax.config.jax_compilation_cache_max_size == CACHE_BYTES
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert machine(platform) == tmp_path / "elsewhere/tpo_jax/compilation"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    assert machine(platform) == tmp_path / ".cache/tpo_jax/compilation"


def test_the_users_own_cache_stays_as_it_is(machine, tmp_path):
    size = jax.config.jax_compilation_cache_max_size
    for platform in ("tpu", "cpu"):
        assert machine(platform, users=tmp_path / "own") == tmp_path / "own"
    assert jax.config.jax_compilation_cache_max_size == size
    assert os.listdir(tmp_path) == []


def test_machine_code_of_a_cpu_is_not_kept(machine, tmp_path):
    assert machine("cpu") is None and os.listdir(tmp_path) == []


def test_a_flag_turns_the_cache_off(machine, tmp_path):
    assert machine("tpu", wanted=False, users=tmp_path / "own") is None
    assert os.listdir(tmp_path) == []


def test_a_cache_folder_that_cannot_be_made_is_told(machine, tmp_path, capsys):
    (tmp_path / ".cache").write_text("a file")
    assert machine("tpu") is None
    assert "compiled programs are not kept" in capsys.readouterr().err


def test_a_call_uses_the_program_that_was_compiled_meanwhile():
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})
    rows = jax.NamedSharding(mesh, jax.P("fsdp"))
    traced = []

    def step(state, batch):
        traced.append(batch.shape)
        return state * batch.sum()

    program = jax.jit(step, donate_argnums=0, out_shardings=rows)
    state, batch = (jax.device_put(jnp.arange(8.0) + i, rows) for i in (0, 1))
    announced = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in (state, batch)]
    longer = jax.ShapeDtypeStruct((16,), batch.dtype, sharding=rows)
    call = compile_meanwhile(
        program, mesh, ((announced[0],), {"batch": announced[1]}), ((announced[0], longer), {})
    )
    with jax.set_mesh(mesh):
        found = call(state, batch=batch)
        assert found.tolist() == [36.0 * i for i in range(8)]
        assert call(found, jax.device_put(jnp.ones(16), rows)).tolist() == [
            16 * 36.0 * i for i in range(8)
        ]
    assert traced == [(8,), (16,)]


def test_a_function_of_equal_settings_is_built_once_and_the_last_are_kept():
    traced = []

    @built_once
    def scaled(settings: MeshShape, factor: float):
        def function(x):
            traced.append((settings, factor))
            return factor * settings.data * x

        return function

    results = [jax.jit(scaled(MeshShape(2), factor))(1.0) for factor in (3.0, 3.0, 5.0)]
    assert results == [6.0, 6.0, 10.0]
    assert traced == [(MeshShape(2), 3.0), (MeshShape(2), 5.0)]
    first = weakref.ref(scaled(MeshShape(2), 3.0))
    for size in range(KEPT):
        scaled(MeshShape(size), 7.0)
    gc.collect()
    assert first() is None


def test_an_error_of_the_compilation_is_raised_by_the_call():
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})

    def step(state):
        raise InputError("data.prefix_multiple is wrong")

    announced = (jax.ShapeDtypeStruct((8,), jnp.float32),)
    call = compile_meanwhile(jax.jit(step), mesh, (announced, {}))
    with pytest.raises(InputError, match="prefix_multiple"):
        call(jnp.zeros(8))
