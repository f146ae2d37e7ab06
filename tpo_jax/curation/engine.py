"""Runs the stages: a journal per stage, work split by video, any kill survived.

`<stage>.jsonl` holds one line per unit: its items, or why it was dropped, or why it was set aside.
The first line says which settings made it. With several parts every part writes its own
`<stage>.<i>-of-<n>.jsonl` and reads those of all. What a unit becomes depends on the seed, the
unit and the models' replies alone, so neither the number of parts nor a kill changes the pairs.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from tpo_jax.curation import projection
from tpo_jax.curation.ledger import Spent
from tpo_jax.curation.speakers import Failure, Request, Speaker, seed_of
from tpo_jax.curation.stages import Dropped, Stage, Unit
from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines
from tpo_jax.io.journal import Journal, check_owner
from tpo_jax.parallel import distributed

ADVICE = "choose another --workdir, or remove this file and those of the later stages"
Outcome = dict[str, Any]  # `id` and one of `items`, `dropped`, `set_aside`


@dataclasses.dataclass(frozen=True)
class Part:
    """Which share of the videos this process does: `index` of `count`."""

    index: int = 0
    count: int = 1

    def has(self, video: str) -> bool:
        """Whether a video is of this share."""
        return seed_of("part", video) % self.count == self.index

    def file(self, workdir: Path, stage: str) -> Path:
        """Where this share's outcomes of a stage are written."""
        tag = "" if self.count == 1 else f".{self.index}-of-{self.count}"
        return workdir / f"{stage}{tag}.jsonl"


def parse_part(text: str) -> Part:
    """`i/n` as a `Part`; empty: all of it.

    Raises:
        InputError: not of that form, or i is not below n.
    """
    if not text:
        return Part()
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--part={text}: must be i/n with i from 0 to n - 1, as 0/4")
    return Part(int(index), int(count))


def run(
    stages: Sequence[Stage],
    owners: Mapping[str, dict[str, Any]],
    speaker: Callable[[str], Speaker],
    videos: Sequence[Unit],
    workdir: Path,
    part: Part,
    *,
    retry: bool = False,
    joint: Callable[[str], bool] = lambda role: False,
    spent: Callable[[], Spent] = Spent,
) -> None:
    """Does what is left to do of this part, stage by stage; of many videos first a pilot, which
    says what the rest will take.

    Several processes (`jax.process_count()`) are one part: the first one writes the journals and
    does what takes no device, `joint` roles are played by all together.

    Args:
        stages: in their order.
        owners: per stage, the settings that its outcomes depend on.
        speaker: makes the back end of a role; called when the role has work to do.
        videos: the units that the first stage starts from.
        workdir: of the journals.
        part: which videos.
        retry: do again what was set aside.
        joint: whether a role's back end is one program on all processes.
        spent: by this part so far.

    Raises:
        InputError: journals of other settings, or a back end that cannot go on.
    """
    units: list[Unit] = [unit for unit in videos if part.has(unit["id"])]
    work = functools.partial(
        _stage, owners=owners, speaker=speaker, workdir=workdir, part=part, joint=joint, spent=spent
    )

    def begun() -> list[str]:
        return list(outcomes(workdir, stages[0].name))

    known = set(distributed.lead(begun))
    new = [unit for unit in units if unit["id"] not in known]
    if len(new) >= 4 * projection.VIDEOS:
        before, seconds = spent(), dict[str, float]()
        pilot = new[: projection.VIDEOS]
        for stage in stages:
            start = time.perf_counter()
            pilot = work(stage, pilot, retry=False)
            seconds[stage.name] = time.perf_counter() - start
        if jax.process_index() == 0:
            rest = len(new) - projection.VIDEOS
            line = projection.projection(projection.VIDEOS, rest, seconds, spent() - before)
            print(line, file=sys.stderr)
    for stage in stages:
        units = work(stage, units, retry=retry)


def _stage(
    stage: Stage, units: Sequence[Unit], *, owners, speaker, workdir, part, retry, joint, spent
) -> list[Unit]:
    """One stage of `run`; returns the units of the next one."""
    owner = {"stage": stage.name, **owners[stage.name]}
    split = [u for unit in units for u in stage.split(unit)]
    path = part.file(workdir, stage.name)
    with contextlib.ExitStack() as open_:
        journal: list[Journal] = []  # of the process that writes
        distributed.lead(lambda: journal.append(open_.enter_context(Journal(path, owner, ADVICE))))
        done = outcomes(workdir, stage.name, owner)
        if not all(distributed.gather(path.exists())):
            raise InputError(f"{path}: not seen by all processes; --workdir must be one folder")
        if retry:
            done = {name: line for name, line in done.items() if "set_aside" not in line}
        todo = [unit for unit in split if unit["id"] not in done]
        together = bool(stage.role) and joint(stage.role)

        def work() -> None:
            if stage.role:
                found = _converse(stage, todo, speaker(stage.role)) if todo else iter(())
            else:
                found = _compute(stage, todo)
            before = spent().cost
            with tqdm(
                total=len(split),
                initial=len(split) - len(todo),
                desc=stage.name,
                unit="unit",
                disable=not journal,
            ) as bar:
                for number, outcome in enumerate(found, 1):
                    if journal:
                        journal[0].add([outcome])
                    done[outcome["id"]] = outcome
                    bar.update()
                    if (cost := spent().cost - before) > 0:
                        # What the whole stage will come to, at the rate of this run.
                        ends = cost / number * len(todo)
                        bar.set_postfix_str(f"cost {cost:.2f}, ~{ends:.2f} in the end")

        if together:
            work()
        else:
            distributed.lead(work)
            if not journal:  # the first process did it
                done = outcomes(workdir, stage.name, owner)
    return follow(split, done)


def outcomes(workdir: Path, stage: str, owner: dict[str, Any] | None = None) -> dict[str, Outcome]:
    """All parts' outcomes of a stage by id; those of `owner`, where it is given, or an error.

    A last line without its end is another part's that is being written, and left out.
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


def follow(units: Iterable[Unit], done: Mapping[str, Outcome]) -> list[Unit]:
    """The units of the next stage: every item with what was known of its unit."""
    return [
        unit | item
        for unit in units
        if unit["id"] in done
        for item in done[unit["id"]].get("items", ())
    ]


def _compute(stage: Stage, units: Sequence[Unit]) -> Iterator[Outcome]:
    """Outcomes of a stage that asks nobody; a few at a time, for files are read."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rest = iter(units)
        while block := list(islice(rest, 64)):
            yield from pool.map(lambda unit: _outcome(stage, unit, []), block)


def _converse(stage: Stage, units: Iterable[Unit], speaker: Speaker) -> Iterator[Outcome]:
    """Outcomes of a stage that asks a role, as the replies come."""
    open_: dict[str, tuple[Unit, list[str | None], int]] = {}
    place: dict[str, tuple[str, int]] = {}
    ready: list[Outcome] = []

    def requests() -> Iterator[Request]:
        for unit in units:
            try:
                asked = stage.ask(unit)
            except ValueError as error:
                ready.append({"id": unit["id"], "set_aside": str(error)})
                continue
            if not asked:
                ready.append(_outcome(stage, unit, []))
                continue
            open_[unit["id"]] = (unit, [None] * len(asked), len(asked))
            place.update({request.id: (unit["id"], i) for i, request in enumerate(asked)})
            yield from asked

    with contextlib.closing(speaker.replies(requests())) as replies:  # type: ignore[type-var]
        for request, reply in replies:
            name, index = place.pop(request.id)
            if name not in open_:  # another request of this unit failed
                continue
            unit, texts, _ = open_[name]
            if isinstance(reply, Failure):
                del open_[name]
                ready.append({"id": name, "set_aside": reply.reason})
            else:
                texts[index] = reply
                if None not in texts:
                    del open_[name]
                    ready.append(_outcome(stage, unit, [t for t in texts if t is not None]))
            yield from ready
            ready.clear()
    yield from ready


def _outcome(stage: Stage, unit: Unit, replies: Sequence[str]) -> Outcome:
    try:
        return {"id": unit["id"], "items": stage.finish(unit, replies)}
    except Dropped as reason:
        return {"id": unit["id"], "dropped": str(reason)}
    except ValueError as error:
        return {"id": unit["id"], "set_aside": str(error)}


class Result(NamedTuple):
    """All parts together: judged units, units that wait for a part, and per stage what became of
    its units.
    """

    units: list[Unit]
    waiting: int
    yields: dict[str, dict[str, int]]
    set_aside: list[dict[str, str]]


def collect(stages: Sequence[Stage], videos: Sequence[Unit], workdir: Path) -> Result:
    """What the journals of all parts say."""
    units, waiting = list(videos), 0
    yields: dict[str, dict[str, int]] = {}
    aside: list[dict[str, str]] = []
    for stage in stages:
        units = [u for unit in units for u in stage.split(unit)]
        done = outcomes(workdir, stage.name)
        counts = {"units": len(units), "items": 0, "dropped": 0, "set aside": 0}
        for unit in units:
            outcome = done.get(unit["id"])
            if outcome is None:
                waiting += 1
            elif reason := outcome.get("set_aside"):
                counts["set aside"] += 1
                aside.append({"stage": stage.name, "id": unit["id"], "reason": reason})
            else:
                counts["items"] += len(outcome.get("items", ()))
                counts["dropped"] += "dropped" in outcome
        yields[stage.name] = counts
        units = follow(units, done)
    return Result(units, waiting, yields, aside)
