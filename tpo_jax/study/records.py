"""What runs leave on disk: rows of JSON files as dataclasses, and where the files lie.

The outcomes published beside `docs/results/reproduction.md` hold only the fields that pages read;
the others have defaults.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json, write_json

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)  # a page reads millions of them
class Answer:
    """A model's answer to a question about a held-out video; `frames` 0: shown another video."""

    video: int
    seconds: int  # length of the video
    frames: int
    type: str
    kind: str  # localized or comprehensive
    question: str = ""
    truth: str = ""
    answer: str = ""
    right: bool = False


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The answers of a base model to a question, of which a pair may be made."""

    id: str
    type: str
    kind: str
    prompt: str
    chosen: str
    rejected: str
    chosen_right: bool
    rejected_right: bool
    video: str = ""
    truth: str = ""
    segment: tuple[float, float] | None = None  # seconds
    manipulation: str = ""  # what each answer was shown
    told: str = ""  # answer with all frames shown
    drawn: tuple[str, ...] = ()  # answers drawn at temperature 1 with all frames shown


@dataclasses.dataclass(frozen=True)
class NeedlesFound:
    """Share of the needles found, `[lengths][depths]`."""

    lengths: tuple[int, ...]  # of the haystack, frames
    depths: tuple[float, ...]  # from 0, the start, to 1
    found: list[list[float]]


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """A model family, a seed, and the row of `rows.ROWS` that is trained."""

    family: str  # preset of the model
    seed: int
    row: str

    def directory(self, workdir: Path) -> Path:
        """Return the directory of everything of this family and seed."""
        return workdir / self.family / f"seed_{self.seed}"

    def answers(self, workdir: Path) -> Path:
        """Return the file of `Answer`s, the final output of the run."""
        return self.directory(workdir) / f"{self.row}_answers.json"

    def needles(self, workdir: Path) -> Path:
        """Return the file of the needles found, which `base` and `tpo` leave as well."""
        return self.directory(workdir) / f"{self.row}_needles.json"


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write dataclasses as a JSON array of objects."""
    write_json(path, [dataclasses.asdict(row) for row in rows])


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Read a JSON array of objects as dataclasses.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]

    def value(read: Any) -> Any:
        if isinstance(read, str):
            return sys.intern(read)  # few texts are different
        return tuple(read) if isinstance(read, list) else read

    try:
        return [kind(**{k: value(v) for k, v in row.items()}) for row in read_json(path)]
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path}: its rows do not have the fields {sorted(names)}") from error
