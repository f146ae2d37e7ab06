import copy
import json
import shutil
import subprocess
import sys

import av
import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.video import clips
from tpo_jax.data import storing
from tpo_jax.data.array_records import write_records
from tpo_jax.data.checks import Settings
from tpo_jax.data.clips import read_clip
from tpo_jax.data.folders import identity_of
from tpo_jax.data.records import PairRecord, Provenance
from tpo_jax.data.shards import open_shards, shard_names, write_metadata, write_shard
from tpo_jax.data.store import Entry, VideoRecord, store_names, write_store
from tpo_jax.errors import InputError
from tpo_jax.video.sampling import read_frames

VIDEOS = ("long.mp4", "short.mkv")


def record(i, digest="0" * 64):
    return PairRecord(
        id=f"pair {i}",
        video_id=VIDEOS[i // 3],
        kind="localized",
        question="Who?",
        chosen=f"A cat, é {i}",
        rejected="A dog.",
        video_digest=digest,
        timestamps=(0.1, 1 / 3),
        duration=2 / 3,
        fps=29.97,
        segment=(0.0, 0.5) if i % 2 else None,
        provenance=Provenance("base"),
    )


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Videos of four groups of pictures and of one."""
    folder = tmp_path_factory.mktemp("media")
    clips.write(folder / VIDEOS[0], 90, gop=24, b_frames=0, size=(256, 192))
    clips.write(folder / VIDEOS[1], 9)
    return folder


@pytest.fixture(scope="module")
def pristine(media, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    (directory / "videos").mkdir()
    block = [(name, identity_of(media / name)[0]) for name in VIDEOS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tpo_jax.video.dissection.SMALL", 1)
        note = storing.write_videos(directory / "videos", media, block, Settings())
    (name,) = store_names(1)
    (directory / "videos" / note["key"]).rename(directory / "videos" / name)
    entries = [
        Entry(video, facts["digest"], 0, facts["first"], facts["records"])
        for video, facts in note["videos"].items()
    ]
    store = write_store(directory / "videos", [note["shard"] | {"name": name}], entries)
    records = [record(i, entries[i // 3].digest) for i in range(5)]
    halves = [records[:3], records[3:]]
    shards = [
        write_shard(directory / name, half)
        for name, half in zip(shard_names(2), halves, strict=True)
    ]
    manifest = {"frames": "clip", "sampling": {"rule": "uniform", "num_frames": 2}}
    manifest |= {"shards": shards, "store": store}
    write_metadata(directory, map(PairRecord.to_json, records), manifest)
    return directory


@pytest.fixture(scope="module")
def pairs(pristine):
    return list(open_shards(pristine))


@pytest.fixture
def directory(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "shards")


def test_round_trip_also_of_a_copy(directory, pairs, media):
    shards = open_shards(directory)
    assert list(shards) == pairs
    assert list(copy.deepcopy(shards)) == pairs
    assert [p.chosen for p in shards.index] == [r.chosen for r in pairs]
    for name, video in zip(VIDEOS, (0, 4), strict=True):
        for opened in (shards, copy.deepcopy(shards)):
            stored = opened.videos.video(pairs[video].video_digest)
            expected = read_frames(media / name, "uniform", 7)
            found = read_frames(stored, "uniform", 7)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(IndexError):
        shards[5]


def test_tfds_and_grain_open_it(directory, pairs, media):
    source = tfds.builder_from_directory(directory).as_data_source(split="train")
    assert [e["chosen"].decode() for e in source] == [r.chosen for r in pairs]
    assert tuple(source[3]["timestamps"]) == pairs[3].timestamps
    paths = [str(directory / name) for name in shard_names(2)]
    raw = grain.sources.ArrayRecordDataSource(paths)
    assert [PairRecord.from_bytes(raw[i]) for i in range(5)] == pairs

    videos = tfds.builder_from_directory(directory / "videos").as_data_source(split="train")
    raw = grain.sources.ArrayRecordDataSource([str(directory / "videos" / store_names(1)[0])])
    found = [VideoRecord.from_bytes(raw[i]) for i in range(len(raw))]
    assert [record.number for record in found] == [0, 1, 2, 3, 4, 0, 1]  # the headers last
    for example, record in zip(videos, found, strict=True):
        assert (example["video"].decode(), example["number"]) == record[:2]
        assert (example["text"].decode(), tuple(example["items"])) == record[2:]


def test_fingerprint_follows_the_content(directory, pairs, tmp_path):
    before = open_shards(directory).fingerprint
    moved = open_shards(shutil.copytree(directory, tmp_path / "elsewhere"))
    assert moved.fingerprint == before
    entry = write_shard(directory / shard_names(2)[0], pairs[2::-1])
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["shards"][0] = entry
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert open_shards(directory).fingerprint != before


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-7])


def junk(path):
    path.write_bytes(b"x" * path.stat().st_size)


INDEX = "videos/index.jsonl"
VIDEO_SHARD = f"videos/{store_names(1)[0]}"


def elsewhere(path):
    path.write_text(path.read_text().replace('"first": 0', '"first": 40'))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (shard_names(2)[1], cut_off, "cut off"),
        (shard_names(2)[1], junk, "ArrayRecord|records"),
        (shard_names(2)[0], lambda path: path.unlink(), "no such file"),
        ("manifest.json", lambda path: path.unlink(), "no such file"),
        ("manifest.json", cut_off, "not a manifest"),
        ("manifest.json", lambda path: path.write_text('{"format": 2}'), "not a manifest"),
        ("manifest.json", lambda path: path.write_text('{"format": 1}'), "format 1.*run prepare"),
        ("index.jsonl", cut_off, "cannot be read"),
        ("index.jsonl", lambda path: path.write_text(""), "has 0 pairs, the shards 5"),
        (VIDEO_SHARD, cut_off, "cut off"),
        (VIDEO_SHARD, lambda path: path.unlink(), "no such file"),
        (INDEX, cut_off, "cannot be read"),
        (INDEX, lambda path: path.unlink(), "cannot be read"),
        (INDEX, elsewhere, "long.mp4 lies outside of the shards"),
    ],
)
def test_damage_is_one_line_naming_the_file(directory, name, damage, reason):
    damage(directory / name)
    with pytest.raises(InputError, match=reason) as error:
        open_shards(directory)
    assert str(directory / name) in str(error.value) and "\n" not in str(error.value)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 255
    path.write_bytes(content)


def test_damage_inside_a_record_names_the_shard(directory):
    path = directory / shard_names(2)[0]
    flip(path, path.read_bytes().index(b"A cat"))
    with pytest.raises(InputError, match=path.name):
        open_shards(directory)[0]


def read(directory, position, num_frames):
    shards = open_shards(directory)
    return read_clip(shards, shards.index[position], "uniform", num_frames)


def test_a_video_cut_off_inside_a_group_is_named(directory, pairs, media):
    """Only what lies in the damaged part is lost."""
    with av.open(str(media / VIDEOS[0])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    path = directory / VIDEO_SHARD
    flip(path, path.read_bytes().index(packets[60]) + 5)
    assert len(read(directory, 0, 1).frames) == 1  # frame 0
    with pytest.raises(InputError, match=r"pair 'pair 0' \(long.mp4\): .*records of long.mp4"):
        read(directory, 0, 9)
    assert len(read(directory, 4, 9).frames) == 9  # the other video


def rewritten(directory, change):
    """Write the records of the videos again, changed, and a manifest that believes them."""
    path = directory / VIDEO_SHARD
    raw = grain.sources.ArrayRecordDataSource([str(path)])
    records = [VideoRecord.from_bytes(raw[i]) for i in range(len(raw))]
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["store"]["shards"] = [
        write_records(path, [r.to_bytes() for r in change(records)], path.name)
    ]
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: [*r[1:5], r[0], *r[5:]], "holds other records than index.jsonl says"),
        (
            lambda r: [*r[:4], r[4]._replace(text=r[4].text.replace("h264", "nonsense")), *r[5:]],
            "no decoder",
        ),
        (lambda r: [*r[:4], r[4]._replace(text="{}"), *r[5:]], "record 4 cannot be read"),
        (lambda r: [*r[:4], r[6]._replace(video=VIDEOS[0], number=4), *r[5:]], "not the video of"),
        (lambda r: [r[0]._replace(items=r[0].items[:5]), *r[1:]], "record 0 cannot be read"),
    ],
)
def test_records_that_are_not_the_video(directory, change, reason):
    rewritten(directory, change)
    with pytest.raises(InputError, match=reason) as error:
        read(directory, 0, 9)
    assert "pair 'pair 0'" in str(error.value) and "\n" not in str(error.value)


def test_a_store_without_the_video_of_a_pair(directory, pairs):
    index = directory / INDEX
    index.write_text(index.read_text().replace(pairs[0].video_digest, "f" * 64))
    with pytest.raises(InputError, match="holds no video [0-9a-f]{12}…; run prepare again"):
        read(directory, 0, 2)
    digest = "f" * 64
    with pytest.raises(InputError, match="long.mp4: not the video of index.jsonl"):
        open_shards(directory).videos.video(digest)


@pytest.mark.parametrize("junk", [b"", b"no record", bytes(range(256))])
def test_junk_is_no_record_of_a_video(junk):
    with pytest.raises(ValueError, match="not a record of a video"):
        VideoRecord.from_bytes(junk)


def test_verification_names_the_file_that_changed(directory):
    open_shards(directory, verify=True)
    changes = {
        shard_names(2)[1]: (b"A cat", b"A bat"),
        "index.jsonl": (b"A dog.", b"A hog."),
        VIDEO_SHARD: (b"milliseconds", b"millisecondz"),
        INDEX: (b"short", b"thort"),
    }
    for name, (old, new) in changes.items():
        content = (directory / name).read_bytes()
        assert old in content
        (directory / name).write_bytes(content.replace(old, new, 1))
        open_shards(directory)
        with pytest.raises(InputError, match=f"{name}: changed since it was written"):
            open_shards(directory, verify=True)
        (directory / name).write_bytes(content)


FIRST_READERS = """
import sys, threading
from tpo_jax.data.records import PairRecord
from tpo_jax.data.store import VideoRecord

def read(kind):
    start.wait()
    try:
        kind.from_bytes(b"no record")
    except ValueError:
        pass

sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
threads = [threading.Thread(target=read, args=(kind,)) for kind in 4 * (PairRecord, VideoRecord)]
for thread in threads:
    thread.start()
"""


def test_several_threads_may_be_the_first_to_read():
    """TFDS is imported by the first of them; unguarded, many starts hang."""
    subprocess.run([sys.executable, "-c", FIRST_READERS], check=True, timeout=300)


OPEN_AND_READ = """
import sys
from pathlib import Path
from tpo_jax.data.clips import read_clip
from tpo_jax.data.shards import open_shards

shards = open_shards(Path(sys.argv[1]))
before = set(sys.modules)
shards[0], read_clip(shards, shards.index[0], "uniform", 2)
print(*(name for name in sys.modules.keys() - before if name.startswith("tensorflow_datasets")))
"""


def test_opening_imports_what_reading_needs(directory):
    """While TFDS is imported, `import` fails in other threads, that of the compiler among them."""
    child = [sys.executable, "-c", OPEN_AND_READ, str(directory)]
    done = subprocess.run(child, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "\n"
