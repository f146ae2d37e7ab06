"""`prepare` on many machines: Apache Beam checks the videos and, through a TFDS builder, writes the
shards. Beam is optional: `pip install -e ".[beam]"`.

The workers call the functions that `prepare` calls without Beam, so the shards are the same to the
byte. They read the videos and write the shards under paths that the launching machine sees, too, or
in a bucket: `--videos=gs://…`, and `--temp_location=gs://…` among the options of the pipeline.
"""

import contextlib
import functools
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.writer import ExampleWriter

from tpo_jax.data import shards
from tpo_jax.data.records import PairRecord, features
from tpo_jax.errors import InputError
from tpo_jax.io.files import write_json
from tpo_jax.io.paths import Place, place

Records = Callable[[], Iterator[PairRecord]]


class _Writer(ExampleWriter):
    """Writes a shard as `shards.write_shard` does, and beside it its index and its entry of the
    manifest.
    """

    def __init__(self) -> None:
        super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD)

    def write(self, path: Any, examples: Any) -> None:
        index = []

        def records() -> Iterator[PairRecord]:
            # TFDS writes the fields of an example in any order, `write_shard` does not.
            for _, data in examples:
                record = PairRecord.from_bytes(data)
                index.append(record.to_json())
                yield record

        target = place(os.fspath(path))
        entry = shards.write_shard(target, records())
        note = {"shard": entry, "index": index}
        write_json(note_of(target), note)


def note_of(shard: Place) -> Place:
    """Return where the index of a shard and its entry of the manifest lie until all are done."""
    return shard.parent / (shard.name + ".json")


def _call(function: Callable, job: tuple) -> Any:
    return function(*job)


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


def _examples(records: Records) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in records():
        yield record.id, record.to_example()


class PairBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS builder of pair records.

    Args:
        parts: Functions that yield the records of each shard, in order; picklable.
        data_dir: TFDS makes `<data_dir>/tpo_pairs/<version>`.
    """

    name = shards.NAME
    VERSION = tfds.core.Version(shards.VERSION)
    code_path = None  # where checksums of downloads would be; TFDS finds it by an extra package

    def __init__(self, parts: Sequence[Records], data_dir: Place):
        self._parts = parts
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=features(), disable_shuffling=True)

    def _shard_iterators_per_split(self, dl_manager):
        return {shards.SPLIT: [functools.partial(_examples, part) for part in self._parts]}

    def _example_writer(self) -> ExampleWriter:
        return _Writer()


class Beam:
    """Runs the two steps of `prepare` on a Beam runner.

    Args:
        options: Command line of the pipeline, as `--runner=DataflowRunner --project=…`.

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
        """Return the results of `function(*job)`, which JSON can hold, in any order.

        Args:
            function: Defined in a module, so that workers can import it.
            jobs: Arguments of every call.
            folder: For what the workers write if the options do not name a bucket.
        """
        if not jobs:
            return []
        beam, scratch = self._beam, self._scratch(folder)
        with _reported(), beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
            results = pipeline | beam.Create(jobs) | beam.Reshuffle()
            results |= beam.Map(functools.partial(_call, function))
            results |= beam.combiners.ToList()
            _ = results | "write" >> beam.Map(functools.partial(_save, scratch / "results.json"))
        found = json.loads((scratch / "results.json").read_text())
        _remove(scratch)
        return found

    def write(self, parts: Sequence[Records], folder: Path) -> list[dict[str, Any]]:
        """Write shards into `folder`; return index and entry of the manifest of each, in order.

        Args:
            parts: As for `PairBuilder`.
            folder: As for `map`.
        """
        scratch = self._scratch(folder)
        builder = PairBuilder(parts, scratch)
        config = tfds.download.DownloadConfig(
            beam_runner=self._runner, beam_options=self._options, try_download_gcs=False
        )
        # TFDS prints where it writes.
        with _reported(), contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config)
        notes = []
        for name in shards.shard_names(len(parts)):
            made = scratch / shards.NAME / shards.VERSION / name
            notes.append(json.loads(note_of(made).read_text()))
            if isinstance(made, Path):
                made.replace(folder / name)
            else:
                made.copy(folder / name, overwrite=True)
        _remove(scratch)
        return notes

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
