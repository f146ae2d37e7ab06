"""Rules of style that the linter does not know."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_PARAMETERS = 8
Function = ast.FunctionDef | ast.AsyncFunctionDef
# First words of noun phrases; a noun shows by the preposition behind it ("Shape of a tensor").
NO_VERB = {"a", "all", "an", "both", "every", "how", "most", "not", "of", "the", "this", "what"}
NO_VERB |= {"whether", "which"}
PREPOSITIONS = {"in", "of"}


def functions() -> Iterator[tuple[str, Function]]:
    """Yield every function of the package behind the place where it is defined."""
    for path in sorted((ROOT / "tpo_jax").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{name}:{node.lineno} {node.name}", node


def begins_with_verb(docstring: str) -> bool:
    """Return false for a first word that is no verb in the imperative."""
    first, second = (*docstring.split(maxsplit=2), "", "")[:2]
    word = first.rstrip(",:;")
    imperative = re.fullmatch(r"[A-Z][a-z]+", word) and not re.search(r"([^s]s|...ing)$", word)
    return bool(imperative) and word.lower() not in NO_VERB and second not in PREPOSITIONS


def parameters(function: Function) -> list[str]:
    """Return the names of a function's parameters, keyword-only ones included, `self` not."""
    given = function.args
    names = [x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [x.arg for x in (given.vararg, given.kwarg) if x]
    return [name for name in names if name not in ("self", "cls")]


def test_no_function_has_more_than_eight_parameters() -> None:
    counts = {place: len(parameters(function)) for place, function in functions()}
    long = {place: count for place, count in counts.items() if count > MOST_PARAMETERS}
    assert not long, "group parameters that belong together in a dataclass"


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    assert begins_with_verb("Pass on a state.")
    assert not begins_with_verb("Shape of a tensor.")
    wrong = {}
    for place, function in functions():
        # A property reads like a field, and is described like one.
        is_property = any("property" in ast.unparse(x) for x in function.decorator_list)
        docstring = ast.get_docstring(function)
        if docstring and not is_property and not begins_with_verb(docstring):
            wrong[place] = docstring.partition("\n")[0]
    assert not wrong
