"""Imports point downward as the table of docs/architecture.md says, and importing a module does
nothing but define things.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tpo_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
TABLE = re.findall(
    r"^\| (\d|–) \| `(\w+)(/|\.py)` \|",
    (ROOT / "docs/architecture.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
LAYERS = {package: int(layer) for layer, package, kind in TABLE if kind == "/"}
COMMON = {name for _, name, kind in TABLE if kind == ".py"}
COMMANDS = {p.stem for p in PACKAGE.glob("*.py")} - COMMON - {"__init__"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Dotted names under tpo_jax that a module imports anywhere, in functions as well."""
    package = module_name(path).split(".")
    if path.stem != "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("tpo_jax"))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join(base + ([node.module] if node.module else []))
            if source.startswith("tpo_jax"):
                yield from (f"{source}.{alias.name}" for alias in node.names)


def package_of(name: str) -> str:
    """`tpo_jax.data.video` -> `data`; '' for errors.py and the package itself."""
    package = (name.split(".") + [""])[1]
    return package if package in LAYERS or package in COMMANDS else ""


def complaint(path: Path, target: str) -> str | None:
    """Why a module may not import `target`; None if it may."""
    upper, lower = package_of(module_name(path)), package_of(target)
    if upper == lower or not lower or upper in ("quickstart", "reproduce", "rounds"):
        return None
    if not upper and path == PACKAGE / "__init__.py" and lower in ("inference", "generation"):
        return None  # the Python API
    if not upper:
        return "modules that every package imports may not import a package"
    if lower in COMMANDS:
        return "only quickstart, reproduce and rounds call another command"
    if upper in COMMANDS or LAYERS[lower] < LAYERS[upper]:
        return None
    return f"layer {LAYERS[upper]} may import lower layers only, {lower} is {LAYERS[lower]}"


def test_table_names_every_package() -> None:
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert len(LAYERS) >= 10
    assert packages == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    complaints = {name: complaint(path, name) for name in imported(path)}
    assert not {name: why for name, why in complaints.items() if why}


# A loaded model owns its tokenizer and its mesh; these make one, train, or write its files.
OPENERS = {
    "load_tokenizer": {
        *("average", "convert", "data.tokenizer", "inference.model", "train"),
        "training.weights",
    },
    "make_mesh": {
        *("inference.model", "parallel.mesh", "train"),
        *("planning.plan", "planning.inference", "planning.fastest"),  # of devices not there
    },
}


@pytest.mark.parametrize("function", OPENERS)
def test_a_loaded_model_alone_opens_its_tokenizer_and_mesh(function: str) -> None:
    callers = {
        module_name(path).removeprefix("tpo_jax.")
        for path in MODULES
        if re.search(rf"\b{function}\(", path.read_text(encoding="utf-8"))
    }
    assert callers <= OPENERS[function]


IMPORT_ALL = """
import contextlib, importlib, io, os, sys
from absl import flags
import jax

# What the libraries do when they are imported is theirs.
for name in sys.argv[1].split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

environ, config, known = dict(os.environ), dict(jax.config.values), set(flags.FLAGS)
out = io.StringIO()
for count, name in enumerate(sys.argv[2].split(), start=1):
    with contextlib.redirect_stdout(out):
        importlib.import_module(name)
    assert dict(os.environ) == environ, f"{name} writes os.environ"
    assert dict(jax.config.values) == config, f"{name} changes jax.config"
    assert not out.getvalue(), f"{name} prints"
    assert not flags.FLAGS.is_parsed(), f"{name} parses flags"
    # Every command is its own program: two may define a flag of the same name.
    for flag in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, flag)
    try:
        jax.config.update("jax_num_cpu_devices", count)  # no new value once a backend is up
    except RuntimeError as error:
        raise AssertionError(f"{name} initialises a JAX backend") from error
    config = dict(jax.config.values)
"""


def test_importing_has_no_side_effect() -> None:
    libraries = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                libraries |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                libraries |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    libraries = {name for name in libraries if not name.startswith("tpo_jax")}
    names = map(module_name, MODULES)
    command = [sys.executable, "-c", IMPORT_ALL, " ".join(sorted(libraries)), " ".join(names)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
