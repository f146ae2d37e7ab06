"""Config files, loaded as `--config=configs/NAME.py` loads them."""

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / "configs"


def load(name: str) -> ModuleType:
    """Return the module of `configs/NAME.py`, which has `get_config`."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
