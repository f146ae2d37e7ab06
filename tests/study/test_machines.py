"""Which machine a notebook runs on, and what it runs there."""

import pytest

from tests.config_files import load
from tpo_jax.planning.chips import CHIPS as PLANNED
from tpo_jax.study.machines import CHIPS, MACHINES, SMALL, find_chips, find_machine, settings_of


@pytest.fixture
def bus(tmp_path):
    """Return a function that writes the folder of a PCI bus with devices of Google and others."""

    def write(*devices: str):
        for number, device in enumerate(("0x1237", *devices)):
            folder = tmp_path / f"0000:00:{number:02x}.0"
            folder.mkdir()
            (folder / "vendor").write_text("0x1ae0\n" if number else "0x8086\n")
            (folder / "device").write_text(f"{device}\n")
        return tmp_path

    return write


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("TPO_JAX_MACHINE", "TPO_JAX_SCALE", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("devices", "kaggle", "name"),
    [
        (["0x0063"], False, "colab_v5e"),
        (["0x006f"], False, "colab_v6e"),
        (["0x0063"] * 8, True, "kaggle_v5e"),
        (["0x0063"] * 4, True, None),
        (["0x0042"], False, None),  # Google's network card
        ([], True, None),
    ],
)
def test_the_bus_tells_the_machine(bus, monkeypatch, devices, kaggle, name):
    if kaggle:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert find_machine(bus(*devices)) is MACHINES.get(name)


def test_chips_are_those_that_plan_knows(bus):
    assert find_chips(bus(*CHIPS)) == list(CHIPS.values())
    assert set(CHIPS.values()) <= set(PLANNED)


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_has_the_chips_of_its_topology(name, monkeypatch):
    monkeypatch.setenv("TPO_JAX_MACHINE", name)
    machine = find_machine()
    assert machine is MACHINES[name]
    kind, shape = machine.topology.split(":")
    rows, columns = map(int, shape.split("x"))
    assert machine.chips == [kind] * rows * columns


@pytest.mark.parametrize("name", MACHINES)
def test_a_recipe_is_for_its_machine(name):
    machine = MACHINES[name]
    _, topology, frames, _ = load("free_tpus").RECIPES[machine.recipe]
    assert (topology, frames) == (machine.topology, machine.frames)


def test_settings_are_of_the_machine_and_small_elsewhere(monkeypatch, tmp_path):
    machine = MACHINES["kaggle_v5e"]._replace(keep=str(tmp_path))
    settings = settings_of(machine)
    assert settings["CHECKPOINT"] == machine.checkpoint
    assert settings["CONFIG"].endswith(machine.recipe)
    assert settings["KEEP"].startswith(str(tmp_path))
    assert settings_of(machine._replace(keep="/none"))["KEEP"] == settings_of(None)["KEEP"]
    assert settings_of(None).items() >= SMALL.items()
    monkeypatch.setenv("TPO_JAX_SCALE", "smoke")
    assert settings_of(machine).items() >= SMALL.items()
