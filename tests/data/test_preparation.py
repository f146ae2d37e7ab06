"""Also through the command: `tests/test_prepare.py`."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from tpo_jax.data import checks, shards
from tpo_jax.data.order import select
from tpo_jax.data.preparation import Settings, Work, prepare
from tpo_jax.errors import InputError
from tpo_jax.video.sampling import read_frames

SETTINGS = Settings(num_frames=4)


def render(path, seed, frames=12, size=(64, 48)):
    """A short clip with frames that can be told apart."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8.0, size)
    for i in range(frames):
        image = np.full((size[1], size[0], 3), 40 * seed % 256, np.uint8)
        image[:, : 4 * (i + 1)] = 255
        writer.write(image)
    writer.release()


def pair(i, video):
    return {"video": video, "prompt": f"Who {i}?", "chosen": f"A cat {i}.", "rejected": "A dog."}


@pytest.fixture
def world(tmp_path):
    """Three videos with two pairs each; (list of pairs, folder of videos)."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for v in range(3):
        render(folder / f"{v}.mp4", v)
    records = [pair(i, f"{i // 2}.mp4") for i in range(6)]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(records))
    return path, folder


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_records_hold_the_exact_clip_and_its_times(world, tmp_path):
    manifest = prepare(*world, tmp_path / "out", SETTINGS)
    assert manifest["kinds"] == {"other": 6} and manifest["videos"] == 3
    opened = shards.open_shards(tmp_path / "out")
    for i, record in enumerate(opened):
        path = world[1] / f"{i // 2}.mp4"
        _, times, duration = read_frames(path, "uniform", 4)
        assert record.frames == (path.read_bytes(),)
        assert record.timestamps == tuple(times) and record.duration == duration
        assert (record.question, record.chosen) == (f"Who {i}?", f"A cat {i}.")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_stored_frames_are_those_of_the_video(world, tmp_path, encoding):
    prepare(*world, tmp_path / "out", Settings("uniform", 4, encoding))
    record = shards.open_shards(tmp_path / "out")[2]
    stored = np.stack(
        [cv2.imdecode(np.frombuffer(f, np.uint8), 1)[..., ::-1] for f in record.frames]
    )
    frames = read_frames(world[1] / "1.mp4", "uniform", 4)[0]
    worst = np.abs(stored.astype(int) - frames).max()
    assert worst == 0 if encoding == "png" else 0 < worst < 64


def test_bad_videos_are_rejected_and_no_neighbour_takes_their_place(world, tmp_path):
    path, folder = world
    whole = (folder / "0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "frames").mkdir()
    bad = ["cut.mp4", "empty.mp4", "none.mp4", "x" * 300, "nul\0.mp4", "frames"]
    records = json.loads(path.read_text())
    late = {**pair(8, "0.mp4"), "segment": [60, 61]}
    records[1:1] = [*(pair(9, name) for name in bad), late, {**pair(9, "0.mp4"), "chosen": ""}]
    path.write_text(json.dumps(records))
    manifest = prepare(path, folder, tmp_path / "out", SETTINGS)
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = {r["where"]: r["reason"] for r in map(json.loads, lines)}
    assert manifest["rejected"] == len(rejected) == 8 and manifest["pairs"] == 6
    for number, name in enumerate(bad, 2):
        assert rejected[f"pairs.json, record {number}"].startswith(f"{name}: ")
    assert "segment starts at 60" in rejected["pairs.json, record 8"]
    opened = shards.open_shards(tmp_path / "out")
    assert [r.question for r in opened] == [f"Who {i}?" for i in range(6)]
    with pytest.raises(InputError, match=r"pairs.json, record 9: chosen is empty"):
        prepare(path, folder, tmp_path / "strict", SETTINGS, Work(strict=True))
    path.write_text(json.dumps(records[:3]))
    with pytest.raises(InputError, match=r"pairs.json, record [23]: (cut|empty).mp4: "):
        prepare(path, folder, tmp_path / "strict", SETTINGS, Work(strict=True))
    path.write_text(json.dumps(records[1:3]))
    with pytest.raises(InputError, match=r"none of the 2 pairs can be used"):
        prepare(path, folder, tmp_path / "strict", SETTINGS)
    assert not list(tmp_path.glob("strict*"))


def test_workers_change_nothing(world, tmp_path):
    prepare(*world, tmp_path / "one", SETTINGS, Work(num_shards=3))
    prepare(*world, tmp_path / "two", SETTINGS, Work(num_shards=3, workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Interrupt(BaseException):
    pass


def test_an_interrupted_run_is_continued(world, tmp_path, monkeypatch):
    prepare(*world, tmp_path / "whole", SETTINGS, Work(num_shards=3))
    real = shards.write_shard
    written = []

    def failing(path, records):
        if len(written) == 2:
            raise Interrupt
        written.append(path.name)
        return real(path, records)

    monkeypatch.setattr(shards, "write_shard", failing)
    with pytest.raises(Interrupt):
        prepare(*world, tmp_path / "out", SETTINGS, Work(num_shards=3))
    assert not (tmp_path / "out").exists()
    checked = []
    check = checks.check_video
    monkeypatch.setattr(
        checks, "check_video", lambda *args: (checked.append(args[0]), check(*args))[1]
    )
    written.clear()
    # A video that changed meanwhile is checked again, and only its shard is written again.
    os.utime(world[1] / "0.mp4", (1, 1))
    prepare(*world, tmp_path / "out", SETTINGS, Work(num_shards=3))
    names = shards.shard_names(3)
    assert checked == ["0.mp4"] and written == [names[0], names[2]]
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert {n: c for n, c in again.items() if n != "manifest.json"} == {
        n: c for n, c in whole.items() if n != "manifest.json"
    }


def test_what_is_finished_is_left_alone(world, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    first = prepare(*world, out, SETTINGS)
    stats = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    written = json.loads((out / "manifest.json").read_text())
    assert prepare(*world, out, SETTINGS) == written and written.items() >= first.items()
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == stats
    with pytest.raises(InputError, match="was made of other pairs, videos or flags"):
        prepare(*world, out, Settings(num_frames=5))
    shutil.rmtree(out)
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="exists and holds no manifest.json"):
        prepare(*world, out, SETTINGS)
    assert [p.name for p in out.iterdir()] == ["letter.txt"]


def test_a_segment_that_the_video_does_not_have_is_rejected(world, tmp_path):
    """12 frames at 8 a second; a frame lasts until the next one, so that 1.6 is a rounded end."""
    segments = [[0.5, 1.5], [0.5, 1.6], [0.5, 1.7], [1.5, 9.0], None, None]
    records = json.loads(world[0].read_text())
    records = [r | {"segment": s} for r, s in zip(records, segments, strict=True)]
    world[0].write_text(json.dumps(records))
    manifest = prepare(*world, tmp_path / "out", SETTINGS)
    assert (manifest["pairs"], manifest["rejected"]) == (4, 2)
    lines = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [
        "segment ends at 1.7 s of a video of 1.50 s",
        "segment starts at 1.5 s of a video of 1.50 s",
    ]


@pytest.mark.parametrize("encoding", ["clip", "png"])
def test_one_answer_on_two_videos(world, tmp_path, encoding):
    records = json.loads(world[0].read_text())
    two = {"video": "0.mp4", "rejected_video": "1.mp4", "prompt": "Who?", "chosen": "A cat."}
    bad = [
        two | {"rejected": "A dog."},
        two | {"rejected_video": "0.mp4"},
        two | {"rejected_video": "../1.mp4"},
        two | {"rejected_video": "missing.mp4"},
        records[0] | {"kind": "video"},
    ]
    world[0].write_text(json.dumps([*records, two, *bad]))
    settings = Settings(num_frames=4, frames=encoding)
    manifest = prepare(*world, tmp_path / "out", settings)
    assert manifest["kinds"] == {"other": 6, "video": 1} and manifest["rejected"] == len(bad)
    opened = shards.open_shards(tmp_path / "out")
    record, singles = opened[6], {r.video_id: r.frames for r in list(opened)[:6]}
    assert (record.video_id, record.rejected_video_id) == ("0.mp4", "1.mp4")
    assert (record.kind, record.chosen, record.rejected) == ("video", "A cat.", "A cat.")
    assert record.frames == singles["0.mp4"] + singles["1.mp4"]
    # The train step's rows hold one video: they are refused by number, or left out by the mixing.
    with pytest.raises(InputError, match="1 of 7 pairs are one answer on two videos"):
        select(opened.index)
    assert len(select(opened.index, limit=6)) == 6
    with pytest.raises(InputError, match="no pair is left of 0 localized, 0 comprehensive"):
        select(opened.index, (1.0, 1.0))
