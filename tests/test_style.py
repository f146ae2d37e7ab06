"""Rules of style that the linter does not know."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_PARAMETERS = 8


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of a function's parameters, keyword-only ones included, `self` not."""
    given = function.args
    names = [x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [x.arg for x in (given.vararg, given.kwarg) if x]
    return [name for name in names if name not in ("self", "cls")]


def test_no_function_has_more_than_eight_parameters() -> None:
    long = {}
    for path in sorted((ROOT / "tpo_jax").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(parameters(node))
                if count > MOST_PARAMETERS:
                    long[f"{name}:{node.lineno} {node.name}"] = count
    assert not long, "group parameters that belong together in a dataclass"
