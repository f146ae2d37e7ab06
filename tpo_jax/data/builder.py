"""`prepare` on many machines: Apache Beam checks the videos and writes their shards. Beam is
optional: `pip install -e ".[beam]"`.

The workers call the function that `prepare` calls without Beam, so the shards are the same to the
byte. They read the videos and write the shards under paths that the launching machine sees, too, or
in a bucket: `--videos=gs://…`, and `--temp_location=gs://…` among the options of the pipeline.
"""

import contextlib
import functools
import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.io.files import write_json
from tpo_jax.io.paths import Place, place

RESULTS = "results.json"


def _call(function: Callable, folder: Place, job: tuple) -> Any:
    return function(folder, *job)


def _save(path: Place, results: list[Any]) -> None:
    write_json(path, results)


def _remove(folder: Place) -> None:
    if folder.exists():
        shutil.rmtree(folder) if isinstance(folder, Path) else folder.rmtree()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn the failure of a pipeline into one line; Beam's own reports have hundreds."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines or [type(error).__name__])[-1]
        raise InputError(f"--beam: the pipeline failed: {reason}") from error


class Beam:
    """Runs the work of `prepare` on a Beam runner.

    Args:
        options: Command line of the pipeline, such as `--runner=DataflowRunner --project=…`.

    Raises:
        InputError: Beam is not installed, or the options do not parse.
    """

    def __init__(self, options: str):
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import (
                GoogleCloudOptions,
                PipelineOptions,
                StandardOptions,
            )
        except ImportError as error:
            raise InputError("--beam needs pip install 'tpo_jax[beam]'") from error
        self._beam, self._cloud = apache_beam, GoogleCloudOptions
        try:
            arguments = shlex.split(options)
        except ValueError as error:
            raise InputError(f"--beam={options!r}: {error}") from error
        if odd := [word for word in arguments if not word.startswith("--")]:
            raise InputError(f"--beam={options!r}: {odd[0]!r} is no option; write --name=value")
        self._options = PipelineOptions(arguments)
        self._runner = self._options.view_as(StandardOptions).runner or "DirectRunner"

    def map(self, function: Callable, jobs: Sequence[tuple], folder: Path) -> list[Any]:
        """Call `function(place, *job)` for every job, then move the files in `place` to `folder`.

        Args:
            function: Defined in a module, so that workers can import it. It returns what JSON can
                hold.
            jobs: Arguments of every call.
            folder: Where the files end up; workers write below it unless the options name a bucket.

        Returns:
            The results, in any order.
        """
        if not jobs:
            return []
        beam, scratch = self._beam, self._scratch(folder)
        with _reported(), beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
            results = pipeline | beam.Create(jobs) | beam.Reshuffle()
            results |= beam.Map(functools.partial(_call, function, scratch))
            results |= beam.combiners.ToList()
            _ = results | "write" >> beam.Map(functools.partial(_save, scratch / RESULTS))
        found = json.loads((scratch / RESULTS).read_text())
        for made in scratch.iterdir():
            if made.name == RESULTS:
                continue
            if isinstance(made, Path):
                made.replace(folder / made.name)
            else:
                made.copy(folder / made.name, overwrite=True)
        _remove(scratch)
        return found

    def _scratch(self, folder: Path) -> Place:
        """Make and return an empty folder that all workers see."""
        bucket = self._options.view_as(self._cloud).temp_location or ""
        scratch: Place = folder / "beam"
        if "://" in bucket:
            name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
            scratch = place(bucket) / f"tpo_jax_{name}"
        _remove(scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch
