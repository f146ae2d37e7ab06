"""The journals of a run: one file per stage and part, one line per unit, read across all parts.

`<stage>.jsonl` holds one line per unit: its `items`, why it was `dropped`, or why it failed
(`set_aside`). Its first line holds the settings it was made with. With several parts each part
writes its own `<stage>.<i>-of-<n>.jsonl` and reads those of all.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tpo_jax.curation.seeds import seed_of
from tpo_jax.curation.stages import Stage
from tpo_jax.curation.units import Unit
from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines
from tpo_jax.io.journal import check_owner

ADVICE = "choose another --workdir, or remove this file and those of the later stages"
Outcome = dict[str, Any]  # `id` and one of `items`, `dropped`, `set_aside`


@dataclasses.dataclass(frozen=True)
class WorkPart:
    """The share of the videos that one run works on: `index` of `count`."""

    index: int = 0
    count: int = 1

    def has(self, video: str) -> bool:
        """Return whether a video id belongs to this part."""
        return seed_of("part", video) % self.count == self.index

    def file(self, workdir: Path, name: str) -> Path:
        """Return this part's file of a stage, or of another name."""
        tag = "" if self.count == 1 else f".{self.index}-of-{self.count}"
        return workdir / f"{name}{tag}.jsonl"


def parse_part(text: str) -> WorkPart:
    """Return the part that `i/n` names; the whole for an empty text.

    Raises:
        InputError: Not of that form, or i is not below n.
    """
    if not text:
        return WorkPart()
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--part={text}: must be i/n with i from 0 to n - 1, as 0/4")
    return WorkPart(int(index), int(count))


def read_outcomes(
    workdir: Path, stage: str, owner: dict[str, Any] | None = None
) -> dict[str, Outcome]:
    """Return the outcomes of a stage by unit id, those of all parts together.

    A last line without its newline is still being written by another part, and is skipped.

    Args:
        owner: The settings that the journals must have been made with; None: any.

    Raises:
        InputError: A journal has other settings, or a line that is no outcome.
    """
    found: dict[str, Outcome] = {}
    for path in sorted([workdir / f"{stage}.jsonl", *workdir.glob(f"{stage}.*-of-*.jsonl")]):
        if not path.exists():
            continue
        lines = read_lines(path, growing=True)
        for _, first in itertools.islice(lines, 1):
            if owner is not None:
                check_owner(path, first, owner, ADVICE)
        for where, line in lines:
            if not isinstance(line.get("id"), str):
                raise InputError(f"{where}: not a line of a journal")
            found[line["id"]] = line
    return found


def next_units(units: Iterable[Unit], outcomes: Mapping[str, Outcome]) -> list[Unit]:
    """Return the units of the next stage: every item, with all that was known of its unit."""
    return [
        _extend(unit, item)
        for unit in units
        if unit.id in outcomes
        for item in outcomes[unit.id].get("items", ())
    ]


def _extend(unit: Unit, item: dict[str, Any]) -> Unit:
    if item.get("segment"):  # JSON has no tuples
        item = item | {"segment": tuple(item["segment"])}
    return dataclasses.replace(unit, **item)


class Result(NamedTuple):
    """What all parts together have made so far.

    Attributes:
        units: Judged units.
        waiting: How many units other parts have still to do.
        yields: Per stage, how many units it had and what became of them.
        failed: Per failed unit its `stage`, `id` and `reason`.
    """

    units: list[Unit]
    waiting: int
    yields: dict[str, dict[str, int]]
    failed: list[dict[str, str]]


def collect(stages: Sequence[Stage], videos: Sequence[Unit], workdir: Path) -> Result:
    """Return what the journals of all parts say."""
    units, waiting = list(videos), 0
    yields: dict[str, dict[str, int]] = {}
    failed: list[dict[str, str]] = []
    for stage in stages:
        units = [u for unit in units for u in stage.split(unit)]
        outcomes = read_outcomes(workdir, stage.name)
        counts = {"units": len(units), "items": 0, "dropped": 0, "set aside": 0}
        for unit in units:
            outcome = outcomes.get(unit.id)
            if outcome is None:
                waiting += 1
            elif reason := outcome.get("set_aside"):
                counts["set aside"] += 1
                failed.append({"stage": stage.name, "id": unit.id, "reason": reason})
            else:
                counts["items"] += len(outcome.get("items", ()))
                counts["dropped"] += "dropped" in outcome
        yields[stage.name] = counts
        units = next_units(units, outcomes)
    return Result(units, waiting, yields, failed)
