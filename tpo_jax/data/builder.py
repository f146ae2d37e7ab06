"""`prepare` past one machine: Apache Beam checks the videos and, through a TFDS builder, writes the
shards. Beam is optional: `pip install -e ".[beam]"`.

The workers call the functions that `prepare` calls without Beam, so the shards are the same to the
byte. They read the videos and write the shards under the paths that the launching machine uses.
"""

import contextlib
import functools
import json
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

Records = Callable[[], Iterator[PairRecord]]


class _Writer(ExampleWriter):
    """Writes a shard as `shards.write_shard` does, and beside it its index and its entry of the
    manifest.
    """

    def __init__(self):
        super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD)

    def write(self, path, examples):
        index = []

        def records() -> Iterator[PairRecord]:
            # TFDS leaves the order of an example's fields to chance, `write_shard` does not.
            for _, data in examples:
                record = PairRecord.from_bytes(data)
                index.append(shards.index_entry(record))
                yield record

        entry = shards.write_shard(Path(path), records())
        shards.write_json(note_of(Path(path)), {"shard": entry, "index": index})


def note_of(shard: Path) -> Path:
    """Where the index of a shard and its entry of the manifest lie until all are done."""
    return shard.with_name(shard.name + ".json")


def _call(function: Callable, job: tuple) -> str:
    return json.dumps(function(*job))


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """A pipeline that fails is one line; Beam's own reports have hundreds."""
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
        parts: what makes the records of each shard, in order; picklable.
        data_dir: TFDS makes `<data_dir>/tpo_pairs/<version>`.
    """

    name = shards.NAME
    VERSION = tfds.core.Version(shards.VERSION)
    code_path = None  # where checksums of downloads would be; TFDS finds it by an extra package

    def __init__(self, parts: Sequence[Records], data_dir: Path):
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
        options: command line of the pipeline, as `--runner=DataflowRunner --project=…`.

    Raises:
        InputError: Beam is not installed, or the options do not parse.
    """

    def __init__(self, options: str):
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        except ImportError as error:
            raise InputError("--beam needs pip install 'tpo_jax[beam]'") from error
        self._beam = apache_beam
        try:
            arguments = shlex.split(options)
        except ValueError as error:
            raise InputError(f"--beam={options!r}: {error}") from error
        if odd := [word for word in arguments if not word.startswith("--")]:
            raise InputError(f"--beam={options!r}: {odd[0]!r} is no option; write --name=value")
        self._options = PipelineOptions(arguments)
        self._runner = self._options.view_as(StandardOptions).runner or "DirectRunner"

    def map(self, function: Callable, jobs: Sequence[tuple], scratch: Path) -> list[Any]:
        """Results of `function(*job)`, which JSON can hold, in any order.

        Args:
            function: of a module.
            jobs: its arguments.
            scratch: a folder that all workers see; removed in the end.
        """
        if not jobs:
            return []
        beam, call = self._beam, functools.partial(_call, function)
        shutil.rmtree(scratch, ignore_errors=True)
        with _reported(), beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
            lines = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(call)
            _ = lines | beam.io.WriteToText(str(scratch / "results"))
        results = [
            json.loads(line)
            for path in sorted(scratch.glob("results*"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        shutil.rmtree(scratch)
        return results

    def write(self, parts: Sequence[Records], folder: Path) -> list[dict[str, Any]]:
        """Writes shards into `folder`; returns index and entry of the manifest of each, in order.

        Args:
            parts: of `PairBuilder`.
            folder: that all workers see.
        """
        scratch = folder / "tfds"
        shutil.rmtree(scratch, ignore_errors=True)
        builder = PairBuilder(parts, scratch)
        config = tfds.download.DownloadConfig(
            beam_runner=self._runner, beam_options=self._options, try_download_gcs=False
        )
        # TFDS prints where it writes.
        with _reported(), contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config)
        notes = []
        for name in shards.shard_names(len(parts)):
            made = Path(builder.data_dir) / name
            notes.append(json.loads(note_of(made).read_text(encoding="utf-8")))
            made.replace(folder / name)
        shutil.rmtree(scratch)
        return notes
