import copy
import json
import random
import shutil

import grain
import pytest
import tensorflow_datasets as tfds

from tpo_jax.data.records import PairRecord, Provenance
from tpo_jax.data.shards import open_shards, shard_names, write_metadata, write_shard
from tpo_jax.errors import InputError


def record(i):
    return PairRecord(
        id=f"pair {i}",
        video_id=f"v{i // 2}",
        kind="localized",
        question="Who?",
        chosen=f"A cat, é {i}",
        rejected="A dog.",
        frame_encoding="clip",
        frames=(random.Random(i).randbytes(3000),),
        timestamps=(0.1, 1 / 3),
        duration=2 / 3,
        fps=29.97,
        segment=(0.0, 0.5) if i % 2 else None,
        provenance=Provenance("base"),
    )


RECORDS = [record(i) for i in range(5)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    halves = [RECORDS[:3], RECORDS[3:]]
    shards = [
        write_shard(directory / name, half)
        for name, half in zip(shard_names(2), halves, strict=True)
    ]
    manifest = {"frames": "clip", "sampling": {"rule": "uniform", "num_frames": 2}}
    write_metadata(directory, map(PairRecord.to_json, RECORDS), manifest | {"shards": shards})
    return directory


@pytest.fixture
def directory(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "shards")


def test_round_trip_also_of_a_copy(directory):
    shards = open_shards(directory)
    assert list(shards) == RECORDS
    assert list(copy.deepcopy(shards)) == RECORDS
    assert [p.chosen for p in shards.index] == [r.chosen for r in RECORDS]
    assert all(p.frames == () for p in shards.index)
    with pytest.raises(IndexError):
        shards[5]


def test_tfds_and_grain_open_it(directory):
    source = tfds.builder_from_directory(directory).as_data_source(split="train")
    assert [e["chosen"].decode() for e in source] == [r.chosen for r in RECORDS]
    assert tuple(source[3]["timestamps"]) == RECORDS[3].timestamps
    assert source[3]["frames"] == list(RECORDS[3].frames)
    paths = [str(directory / name) for name in shard_names(2)]
    raw = grain.sources.ArrayRecordDataSource(paths)
    assert [PairRecord.from_bytes(raw[i]) for i in range(5)] == RECORDS


def test_fingerprint_follows_the_content(directory, tmp_path):
    before = open_shards(directory).fingerprint
    moved = open_shards(shutil.copytree(directory, tmp_path / "elsewhere"))
    assert moved.fingerprint == before
    entry = write_shard(directory / shard_names(2)[0], RECORDS[2::-1])
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["shards"][0] = entry
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert open_shards(directory).fingerprint != before


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-7])


def junk(path):
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (shard_names(2)[1], cut_off, "cut off"),
        (shard_names(2)[1], junk, "ArrayRecord|records"),
        (shard_names(2)[0], lambda path: path.unlink(), "no such file"),
        ("manifest.json", lambda path: path.unlink(), "no such file"),
        ("manifest.json", cut_off, "not a manifest"),
        ("manifest.json", lambda path: path.write_text('{"format": 1}'), "not a manifest"),
        ("index.jsonl", cut_off, "cannot be read"),
        ("index.jsonl", lambda path: path.write_text(""), "has 0 pairs, the shards 5"),
    ],
)
def test_damage_is_one_line_naming_the_file(directory, name, damage, reason):
    damage(directory / name)
    with pytest.raises(InputError, match=reason) as error:
        open_shards(directory)
    assert str(directory / name) in str(error.value) and "\n" not in str(error.value)


def test_damage_inside_a_record_names_the_shard(directory):
    path = directory / shard_names(2)[0]
    content = bytearray(path.read_bytes())
    at = content.find(RECORDS[1].frames[0][:16])
    assert at > 0
    content[at] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        open_shards(directory)[1]


def test_verification_names_the_file_that_changed(directory):
    open_shards(directory, verify=True)
    shard, index = directory / shard_names(2)[1], directory / "index.jsonl"
    for path, old, new in ((shard, b"A cat", b"A bat"), (index, b"A dog.", b"A hog.")):
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        open_shards(directory)
        with pytest.raises(InputError, match=f"{path.name}: changed since it was written"):
            open_shards(directory, verify=True)
        path.write_bytes(content)


def test_shards_without_a_checksum_open_but_do_not_verify(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["index"]  # as older versions wrote it
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert len(open_shards(directory)) == 5
    with pytest.raises(InputError, match=r"index\.jsonl: cannot be verified, .* no checksum"):
        open_shards(directory, verify=True)
