"""The command as a user types it, on real clips."""

import json
import tarfile

import numpy as np
import pytest

from tests.commands import Result, call
from tests.video.clips import write
from tpo_jax.data.shards import open_shards
from tpo_jax.video.sampling import read_frames

CLIPS = ["dc_demo.mp4", "jobs.mp4", "short_clip.mp4"]


def run(**flags) -> Result:
    (result,) = call("prepare", {"workers": 1, **flags})
    return result


@pytest.fixture
def pairs(tmp_path):
    lines = [
        {"video": v, "prompt": "<video>\nWhat is it?", "chosen": "A clip.", "rejected": "A song."}
        for v in CLIPS
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def assert_stored(directory, media, prefix):
    """Compare stored videos with their files."""
    shards = open_shards(directory)
    assert [r.video_id for r in shards] == [prefix + name for name in CLIPS]
    for pair, name in zip(shards, CLIPS, strict=True):
        found = read_frames(shards.videos.video(pair.video_digest), "uniform", 3)
        expected = read_frames(media / name, "uniform", 3)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_real_clips_with_a_bad_pair(pairs, shared_media, tmp_path):
    with pairs.open("a") as file:
        file.write('{"video": "jobs.mp4", "prompt": "Who?", "chosen": "", "rejected": "a"}\n')
    flags = {"pairs": pairs, "videos": shared_media, "num_frames": 2}
    result = run(**flags, output=tmp_path / "out")
    assert result.code == 0, result.err
    assert result.out == (
        f"{tmp_path / 'out'}: 3 pairs (3 other) of 3 videos, 2 shards; 1 pairs rejected, "
        "see rejected.jsonl\n"
    )
    assert_stored(tmp_path / "out", shared_media, "")
    rejected = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
    assert (rejected["where"], rejected["reason"]) == ("pairs.jsonl:4", "chosen is empty")

    result = run(**flags, output=tmp_path / "strict", strict=True)
    assert result.code == 2 and not result.out
    assert result.err.splitlines() == ["error: pairs.jsonl:4: chosen is empty"]
    assert not list(tmp_path.glob("strict*"))


def test_a_table_and_a_split_archive(shared_media, tmp_path):
    """The layout of a published set: one CSV, videos as parts of one tar file."""
    rows = ["clip;name,What is asked,good,bad"]
    rows += [f"videos/{name},What is it?,A clip.,A song." for name in CLIPS]
    (tmp_path / "dataset.csv").write_text("\n".join(rows) + "\n")
    with tarfile.open(tmp_path / "all.tar", "w") as out:
        for name in CLIPS:
            out.add(shared_media / name, f"videos/{name}")
    data = (tmp_path / "all.tar").read_bytes()
    (tmp_path / "all.tar").unlink()
    for i in range(0, len(data), 2_000_000):
        (tmp_path / f"videos.part.a{chr(97 + i // 2_000_000)}").write_bytes(data[i : i + 2_000_000])
    columns = ["video=clip;name", "prompt=What is asked", "chosen=good", "rejected=bad"]
    result = run(
        pairs=tmp_path / "dataset.csv",
        videos=tmp_path / "unpacked",
        archive=tmp_path / "videos.part.",
        output=tmp_path / "out",
        num_frames=2,
        column=columns,
    )
    assert result.code == 0, result.err
    assert "3 pairs (3 other) of 3 videos" in result.out
    assert_stored(tmp_path / "out", shared_media, "videos/")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"videos": "nowhere"}, "--videos=nowhere: no such folder"),
        ({"videos": ".", "num_frames": 0}, "num_frames"),
        ({"videos": ".", "sampling": "often"}, "sampling"),
        ({"videos": ".", "column": "film=x"}, "--column=film=x: must be role=name"),
        ({"videos": ".", "proxy": 7}, "--proxy=7: a proxy needs 16 pixels at least"),
        ({"videos": ".", "column": "video=x"}, "no column 'x'; it has video, prompt, chosen"),
    ],
)
def test_wrong_flags_are_named(pairs, tmp_path, flags, reason):
    result = run(pairs=pairs, output=tmp_path / "out", **flags)
    assert result.code == 2 and not result.out
    assert reason in result.err and "Traceback" not in result.err
    assert not list(tmp_path.glob("out*"))


def test_videos_without_pairs(tmp_path):
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos/short.mkv", 9)
    (tmp_path / "videos/notes.txt").write_text("no video")
    flags = {"videos": tmp_path / "videos", "output": tmp_path / "store", "workers": 1}
    made, column, export, of_store = call(
        "prepare",
        flags,
        flags | {"column": "video=clip"},
        flags | {"export": "trl"},
        flags | {"export": "trl", "videos": tmp_path / "store", "pairs": "pairs.jsonl"},
    )
    assert made.code == 0 and made.out == (
        f"{tmp_path / 'store'}: 1 videos, 1 shards; 1 files rejected, see rejected.jsonl\n"
    )
    for result, flag in ((column, "column"), (export, "export")):
        assert (result.code, result.err) == (
            2,
            f"error: --{flag} is for --pairs, which are missing\n",
        )
    assert of_store.code == 2 and "store: a store, but the lists" in of_store.err
