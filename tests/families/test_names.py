"""Shared packages know no family by name: identifiers and strings of their code, docstrings and
comments left out.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "tpo_jax"
SHARED = ("models", "generation", "training", "inference", "data", "checkpoints", "parallel")
FAMILY = re.compile(r"llava|longva|siglip|unires|spatial_unpad|clip[-_ ]?vi|vision_tower", re.I)


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Identifiers and strings of a module with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and _doc(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        for field in ("id", "attr", "name", "arg", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), value


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)


@pytest.mark.parametrize("package", SHARED)
def test_shared_code_names_no_family(package: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name!r}"
        for path in sorted((PACKAGE / package).rglob("*.py"))
        for line, name in names(path)
        if FAMILY.search(name)
    ]
    assert not found
