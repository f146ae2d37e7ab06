"""The search for the fastest settings: its formulas, and what it compiles."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import pytest

from tests.planning.slice import SLICE, experiment
from tpo_jax.errors import InputError
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.planning import hlo, program
from tpo_jax.planning.chips import CHIPS
from tpo_jax.planning.estimate import device_bytes
from tpo_jax.planning.fastest import MOST, REMATS, Setting, fastest, settings
from tpo_jax.planning.plan import Plan, abstract_state
from tpo_jax.planning.program import GIB
from tpo_jax.training.experiment import read

LIMIT = 10.0


def plan(seconds, peak):
    return Plan("", 1, 1, {}, 1, 1, 1, 1, peak <= LIMIT, LIMIT, peak, seconds={"compute": seconds})


times, sizes = st.floats(1, 10), st.floats(1, 15)


@hypothesis.given(
    st.lists(st.tuples(times, sizes), min_size=1, max_size=MOST), st.floats(1, 2), st.floats(0, 3)
)
@hypothesis.settings(deadline=None)
def test_the_fastest_setting_that_fits_is_found(drawn, factor, working):
    """The chip is simulated: steps take longer than the formulas say, and more memory."""
    found = [
        Setting((1, 1, 1, 1), str(i), 1, "float32", seconds, size)
        for i, (seconds, size) in enumerate(drawn)
    ]
    found.sort(key=lambda setting: setting.seconds)
    asked = []

    def compile_at(setting):
        asked.append(setting)
        return plan(setting.seconds * factor, setting.bytes + working)

    setting, best = fastest(compile_at, found, LIMIT, lambda line: None)
    assert len(asked) == len(set(asked))
    fitting = [seconds * factor for seconds, size in drawn if size + working <= LIMIT - 1e-9]
    if fitting:
        assert best.fits and best.seconds["compute"] == min(fitting)
    elif not best.fits:
        assert setting.bytes == min(size for _, size in drawn)


def test_what_is_missing_is_told():
    found = [Setting((1, 1, 1, 1), "full", 1, "float32", 1.0, 3.0 * GIB)]
    told = []
    result = fastest(lambda s: plan(1.0, s.bytes), found, 1.0 * GIB, told.append)
    assert not result[1].fits and told[-1].startswith("nothing fits: 2.00 GiB are missing")
    with pytest.raises(InputError, match="no mesh of this slice can run the experiment"):
        fastest(lambda s: plan(1.0, s.bytes), [], LIMIT, told.append)


def test_settings_of_a_slice():
    config = experiment(train__batch_size=8)
    found = settings(config, SLICE, jax.devices(), CHIPS["v5e"])
    assert len(set(found)) == len(found) > 100
    assert [s.seconds for s in found] == sorted(s.seconds for s in found)
    meshes = {s.mesh for s in found}
    assert all(data * fsdp * tensor * context == 8 for data, fsdp, tensor, context in meshes)
    assert {(1, 8, 1, 1), (8, 1, 1, 1), (1, 4, 2, 1), (1, 4, 1, 2)} <= meshes
    assert not any(tensor > 2 for _, _, tensor, _ in meshes)  # two key and value heads
    # Keeping more takes memory and saves time.
    alike = lambda s: (s.mesh, s.micro_batches, s.moments)  # noqa: E731
    for _, group in itertools.groupby(sorted(found, key=alike), key=alike):
        kept = sorted(group, key=lambda s: REMATS.index(s.remat))
        for less, more in itertools.pairwise(kept):
            assert less.bytes <= more.bytes and less.seconds >= more.seconds
    # The state is counted as it lies on a device.
    for setting in found[:: len(found) // 10]:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(setting.changes)
        wanted = read(changed)
        mesh = make_mesh(dataclasses.asdict(wanted.mesh))
        assert setting.bytes > device_bytes(abstract_state(wanted, SLICE, mesh)[1])


def test_a_program_is_compiled_once(tmp_path, monkeypatch):
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    compiled = []

    def compile_program(lowered, mesh):
        compiled.append(lowered)
        work = hlo.Work(2.0, 1.0, 0.5, 3.0, {"all-gather": [1, 4.0]})
        return program.Program(7.0 * len(compiled), {"argument": 1.0}, work)

    monkeypatch.setattr(program, "compile_program", compile_program)
    monkeypatch.setattr(program.importlib.metadata, "version", lambda package: "1")

    def ask(n):
        lowered = jax.jit(lambda x: n * x).lower(1.0)
        return program.cached_program(lowered, mesh, tmp_path / "plans")

    first, again, other = ask(1), ask(1), ask(2)
    assert len(compiled) == 2 and first.peak == again.peak != other.peak
    assert first.memory == again.memory
    assert dataclasses.asdict(first.work) == dataclasses.asdict(again.work)
    monkeypatch.setattr(program.importlib.metadata, "version", lambda package: "2")
    assert ask(1).peak == 21.0  # another compiler
