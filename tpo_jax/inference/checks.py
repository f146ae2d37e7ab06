"""Checks of arguments from Python: a value of the wrong type is named in one line."""

import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tpo_jax.errors import InputError


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise `InputError` unless a value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{name}={value!r} must be a whole number of {least} or more")


def texts_of(question: Any) -> list[str]:
    """Return one question, or several, as a list.

    Raises:
        InputError: none, an empty one, or one that is not a text.
    """
    given = [question] if isinstance(question, str) else question
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise InputError(f"question={question!r} must be a text, or a list of texts")
    if not given:
        raise InputError("no question: give one, or a list of them")
    if not all(map(str.strip, given)):
        raise InputError("an empty question asks nothing; give a text")
    return list(given)


def check_images(images: Any) -> None:
    """Raise `InputError` unless images are in a list or a tuple."""
    if not isinstance(images, list | tuple):
        raise InputError(f"images={_said(images)} must be a list of files or PIL images")


def check_path(name: str, value: Any, otherwise: str = "") -> None:
    """Raise `InputError` unless a value is a path; `otherwise` is what else may be given."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"{name}={_said(value)} must be a path{otherwise}")


def check_pairs(pairs: Any) -> None:
    """Raise `InputError` unless pairs are in a sequence, each an object or a `Pair`."""
    if isinstance(pairs, str | os.PathLike | Mapping) or not isinstance(pairs, Sequence):
        raise InputError(
            f"pairs={_said(pairs)} must be a list of pairs; for one pair write [pair], for a file "
            "run python -m tpo_jax.score"
        )


def check_mesh(mesh: Any) -> None:
    """Raise `InputError` unless a mesh is given by the sizes of its axes."""
    sized = isinstance(mesh, Mapping) and all(isinstance(size, int) for size in mesh.values())
    if not sized:
        raise InputError(f"mesh={mesh!r} must give axes their sizes, as {{'fsdp': -1}}")


def _said(value: Any) -> str:
    """Return the repr of a text, and only the type of anything else: it may be a whole array."""
    return repr(value) if isinstance(value, str) else f"<{type(value).__name__}>"
