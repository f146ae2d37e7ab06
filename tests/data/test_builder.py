"""`prepare` on Apache Beam's local runner; skipped where Beam is not installed."""

import importlib.util
import json

import fsspec
import pytest
import tensorflow_datasets as tfds
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from tests.data.test_preparation import SETTINGS, contents, render, world  # noqa: F401
from tpo_jax.data.builder import PairBuilder
from tpo_jax.data.preparation import Work, prepare
from tpo_jax.data.records import PairRecord
from tpo_jax.data.shards import open_shards
from tpo_jax.errors import InputError

BEAM = importlib.util.find_spec("apache_beam") is not None


@pytest.fixture
def beam():
    if not BEAM:
        pytest.skip("apache_beam is not installed: pip install -e '.[beam]'")


def test_beam_writes_what_one_process_writes(beam, world, tmp_path, capsys):  # noqa: F811
    pairs, folder = world
    records = json.loads(pairs.read_text())
    (folder / "broken.mp4").write_bytes(b"no video")
    records += [records[0] | {"video": "broken.mp4"}]
    records += [records[0] | {"rejected_video": "1.mp4", "rejected": records[0]["chosen"]}]
    pairs.write_text(json.dumps(records))
    one = prepare(pairs, folder, tmp_path / "one", SETTINGS, Work(num_shards=3))
    many = prepare(pairs, folder, tmp_path / "many", SETTINGS, Work(num_shards=3, beam=""))
    assert many == one and one["rejected"] == 1 and len(one["shards"]) == 3
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert not list(tmp_path.glob("*.partial")) and not capsys.readouterr().out
    # What is finished is left alone, by either way.
    again = prepare(pairs, folder, tmp_path / "one", SETTINGS, Work(num_shards=3, beam=""))
    assert again["inputs"] == one["inputs"]


class Bucket(MemoryFileSystem):
    """`gs://…` in memory."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    def __init__(self, *_, **__):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


def test_videos_and_workers_in_a_bucket(beam, world, tmp_path, monkeypatch):  # noqa: F811
    """As on Dataflow: the workers share no disk with this machine. Here they are threads."""
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    pairs, folder = world
    for path in folder.iterdir():
        (epath.Path("gs://bucket/videos") / path.name).write_bytes(path.read_bytes())
    one = prepare(pairs, folder, tmp_path / "one", SETTINGS, Work(num_shards=2))
    options = "--temp_location=gs://bucket/temporary"
    many = prepare(
        pairs, "gs://bucket/videos", tmp_path / "many", SETTINGS, Work(num_shards=2, beam=options)
    )
    assert many["shards"] == one["shards"] and many["inputs"] != one["inputs"]
    for shard in one["shards"]:
        found, expected = (tmp_path / run / shard["name"] for run in ("many", "one"))
        assert found.read_bytes() == expected.read_bytes()
    assert list(open_shards(tmp_path / "many")) == list(open_shards(tmp_path / "one"))
    assert not [name for name in Bucket.store if "temporary" in name]


def test_a_failed_pipeline_is_one_line(beam, world, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(InputError, match="--beam='DirectRunner': 'DirectRunner' is no option"):
        prepare(*world, tmp_path / "out", SETTINGS, Work(beam="DirectRunner"))
    with pytest.raises(InputError, match="--beam: the pipeline failed: .*Nonsense") as error:
        prepare(*world, tmp_path / "out", SETTINGS, Work(beam="--runner=Nonsense"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_bucket_that_nothing_can_read(world, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="--videos=az://bucket/videos: .*[Ii]nstall"):
        prepare(world[0], "az://bucket/videos", tmp_path / "out", SETTINGS)


def test_without_beam_the_error_says_what_to_install(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"--beam needs pip install 'tpo_jax\[beam\]'"):
        prepare(*world, tmp_path / "out", SETTINGS, Work(beam=""))
    assert not list(tmp_path.glob("out*"))


def test_the_builder_makes_a_data_set_of_its_own(world, tmp_path):  # noqa: F811
    """Without Beam TFDS writes in this process; `tfds.data_source` reads it, and so do we."""
    prepare(*world, tmp_path / "out", SETTINGS)
    records = list(open_shards(tmp_path / "out"))
    parts = [lambda: iter(records[:4]), lambda: iter(records[4:])]
    builder = PairBuilder(parts, tmp_path / "tfds")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    source = builder.as_data_source(split="train")
    assert [e["id"].decode() for e in source] == [record.id for record in records]
    assert [PairRecord.from_bytes(b) for b in source.data_source] == records
