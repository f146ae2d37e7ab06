"""Run the stages on one part of the videos and journal every unit's outcome.

What becomes of a unit depends on the seed, the unit and the models' replies alone, so neither a
kill nor the number of parts changes the pairs.
"""

import contextlib
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from tpo_jax.curation import projection
from tpo_jax.curation.clients import Failure, ModelClient, Request
from tpo_jax.curation.journals import ADVICE, Outcome, WorkPart, next_units, read_outcomes
from tpo_jax.curation.roles import Clients
from tpo_jax.curation.stages import Dropped, Stage
from tpo_jax.curation.units import Unit
from tpo_jax.errors import InputError
from tpo_jax.io.journal import Journal
from tpo_jax.parallel import distributed

BLOCK = 64  # units computed ahead by threads


class StageRunner:
    """Runs stages on one part of the videos, skipping units that are already journaled.

    Several processes (`jax.process_count()`) are one part: the first one writes the journals and
    does what takes no device; all of them run a local model together.

    Args:
        owners: Per stage, the settings that its outcomes depend on.
    """

    def __init__(
        self,
        workdir: Path,
        part: WorkPart,
        owners: Mapping[str, dict[str, Any]],
        clients: Clients,
        retry: bool = False,
    ):
        self.workdir, self.part, self.owners = workdir, part, owners
        self.clients, self.retry = clients, retry

    def run(self, stages: Sequence[Stage], videos: Sequence[Unit]) -> None:
        """Do what is left to do of this part, stage by stage.

        With many new videos a pilot goes through all stages first, and a line on standard error
        says what the rest will take.

        Raises:
            InputError: A journal was made with other settings, or a client had to stop.
        """
        units = [unit for unit in videos if self.part.has(unit.id)]
        known = set(distributed.lead(lambda: list(read_outcomes(self.workdir, stages[0].name))))
        new = [unit for unit in units if unit.id not in known]
        if len(new) >= 4 * projection.VIDEOS:
            self._run_pilot(stages, new[: projection.VIDEOS], len(new) - projection.VIDEOS)
        for stage in stages:
            units = self._run_stage(stage, units, self.retry)

    def _run_pilot(self, stages: Sequence[Stage], pilot: list[Unit], rest: int) -> None:
        before, seconds = self.clients.spent(), dict[str, float]()
        for stage in stages:
            start = time.perf_counter()
            pilot = self._run_stage(stage, pilot, retry=False)
            seconds[stage.name] = time.perf_counter() - start
        if jax.process_index() == 0:
            spent = self.clients.spent() - before
            line = projection.projection(projection.VIDEOS, rest, seconds, spent)
            print(line, file=sys.stderr)

    def _run_stage(self, stage: Stage, units: Sequence[Unit], retry: bool) -> list[Unit]:
        """Run one stage and return the units of the next one."""
        owner = {"stage": stage.name, **self.owners[stage.name]}
        split = [u for unit in units for u in stage.split(unit)]
        path = self.part.file(self.workdir, stage.name)
        with contextlib.ExitStack() as stack:
            journal: list[Journal] = []  # only in the process that writes it

            def open_journal() -> None:
                journal.append(stack.enter_context(Journal(path, owner, ADVICE)))

            distributed.lead(open_journal)
            outcomes = read_outcomes(self.workdir, stage.name, owner)
            if not all(distributed.gather(path.exists())):
                raise InputError(f"{path}: not seen by all processes; --workdir must be one folder")
            if retry:
                outcomes = {k: v for k, v in outcomes.items() if "set_aside" not in v}
            todo = [unit for unit in split if unit.id not in outcomes]

            def work() -> None:
                found = self._with_progress(stage, todo, len(split), bool(journal))
                with contextlib.closing(found):
                    for outcome in found:
                        if journal:
                            journal[0].add([outcome])
                        outcomes[outcome["id"]] = outcome

            if stage.role and self.clients.joint(stage.role):
                work()
            else:
                distributed.lead(work)
                if not journal:
                    outcomes = read_outcomes(self.workdir, stage.name, owner)
        return next_units(split, outcomes)

    def _with_progress(
        self, stage: Stage, todo: Sequence[Unit], total: int, shown: bool
    ) -> Generator[Outcome, None, None]:
        """Yield the outcomes of a stage, with a progress bar that says what it will cost."""
        found = _compute(stage, todo)
        if stage.role and todo:
            found = _ask(stage, todo, self.clients.client(stage.role))
        before, begun = self.clients.spent().cost, total - len(todo)
        with tqdm(
            total=total, initial=begun, desc=stage.name, unit="unit", disable=not shown
        ) as bar:
            for number, outcome in enumerate(found, 1):
                yield outcome
                bar.update()
                if (cost := self.clients.spent().cost - before) > 0:
                    whole = cost / number * len(todo)  # at this run's rate
                    bar.set_postfix_str(f"cost {cost:.2f} of about {whole:.2f}")


def _compute(stage: Stage, units: Sequence[Unit]) -> Iterator[Outcome]:
    """Yield the outcomes of a stage without a model; threads, because it reads files."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rest = iter(units)
        while block := list(islice(rest, BLOCK)):
            yield from pool.map(lambda unit: _finish(stage, unit, []), block)


def _ask(stage: Stage, units: Iterable[Unit], client: ModelClient) -> Iterator[Outcome]:
    """Yield the outcomes of a stage that asks a model, as the replies come."""
    waiting: dict[str, tuple[Unit, list[str | None]]] = {}  # unit id -> unit, its replies so far
    places: dict[str, tuple[str, int]] = {}  # request id -> unit id, index of the reply
    ready: list[Outcome] = []

    def requests() -> Iterator[Request]:
        for unit in units:
            try:
                asked = stage.requests(unit)
            except ValueError as error:
                ready.append({"id": unit.id, "set_aside": str(error)})
                continue
            if not asked:
                ready.append(_finish(stage, unit, []))
                continue
            waiting[unit.id] = (unit, [None] * len(asked))
            places.update({request.id: (unit.id, i) for i, request in enumerate(asked)})
            yield from asked

    with contextlib.closing(client.replies(requests())) as replies:
        for request, reply in replies:
            name, index = places.pop(request.id)
            if name not in waiting:  # another request of this unit failed
                continue
            unit, texts = waiting[name]
            if isinstance(reply, Failure):
                del waiting[name]
                ready.append({"id": name, "set_aside": reply.reason})
            else:
                texts[index] = reply
                if None not in texts:
                    del waiting[name]
                    ready.append(_finish(stage, unit, [t for t in texts if t is not None]))
            yield from ready
            ready.clear()
    yield from ready


def _finish(stage: Stage, unit: Unit, replies: Sequence[str]) -> Outcome:
    try:
        return {"id": unit.id, "items": [stage.item(u) for u in stage.finish(unit, replies)]}
    except Dropped as reason:
        return {"id": unit.id, "dropped": str(reason)}
    except ValueError as error:
        return {"id": unit.id, "set_aside": str(error)}
