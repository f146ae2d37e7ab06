"""`prepare` on Apache Beam's local runner; skipped where Beam is not installed."""

import importlib.util
import json

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from tests.data.test_preparation import SETTINGS, contents, render, world  # noqa: F401
from tpo_jax.data.preparation import Work, prepare
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
    one = prepare(pairs, folder, tmp_path / "one", SETTINGS, Work(3, shard_mb=0))
    many = prepare(pairs, folder, tmp_path / "many", SETTINGS, Work(3, beam="", shard_mb=0))
    assert many == one and one["rejected"] == 1 and len(one["shards"]) == 3
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert not list(tmp_path.glob("*.partial")) and not capsys.readouterr().out
    # What is finished is left alone, by either way.
    again = prepare(pairs, folder, tmp_path / "one", SETTINGS, Work(3, beam="", shard_mb=0))
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
    one = prepare(pairs, folder, tmp_path / "one", SETTINGS, Work(2, shard_mb=0))
    options = "--temp_location=gs://bucket/temporary"
    many = prepare(
        pairs,
        "gs://bucket/videos",
        tmp_path / "many",
        SETTINGS,
        Work(2, beam=options, shard_mb=0),
    )
    assert many["shards"] == one["shards"] and many["inputs"] != one["inputs"]
    assert many["store"] == one["store"] and len(one["store"]["shards"]) == 3
    found, expected = (contents(tmp_path / run) for run in ("many", "one"))
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found.keys() - {"manifest.json"})
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
