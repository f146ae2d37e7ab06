"""Also through the command: `tests/test_prepare.py`."""

import json
import os
import shutil

import av
import cv2
import numpy as np
import pytest

from tests.video import clips
from tpo_jax.data import array_records, shards, storing
from tpo_jax.data.checks import complaint
from tpo_jax.data.order import select
from tpo_jax.data.pairs import pair_of
from tpo_jax.data.preparation import Settings, Work, prepare
from tpo_jax.errors import InputError
from tpo_jax.video import decode as video
from tpo_jax.video.sampling import read_frames, sample_frames

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
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_pairs_name_their_video_which_is_stored_once(world, tmp_path):
    manifest = prepare(*world, tmp_path / "out", SETTINGS)
    assert manifest["kinds"] == {"other": 6} and manifest["videos"] == 3
    opened = shards.open_shards(tmp_path / "out")
    for i, record in enumerate(opened):
        path = world[1] / f"{i // 2}.mp4"
        _, times, duration = read_frames(path, "uniform", 4)
        assert record.video_digest == opened.videos.names()[f"{i // 2}.mp4"]
        assert record.timestamps == tuple(times) and record.duration == duration
        assert (record.question, record.chosen) == (f"Who {i}?", f"A cat {i}.")
        for rule, n in (("uniform", 4), ("fps", 3), ("uniform", 30)):
            expected = sample_frames(path, rule, n)
            found = sample_frames(opened.videos.video(record.video_digest), rule, n)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(opened.videos) == 3 and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_stored_frames_are_those_of_the_video(world, tmp_path, encoding):
    prepare(*world, tmp_path / "out", Settings("uniform", 4, encoding))
    record = shards.open_shards(tmp_path / "out")[2]
    images = shards.open_shards(tmp_path / "out").videos.images(record.video_digest)
    stored = np.stack([cv2.imdecode(np.frombuffer(f, np.uint8), 1)[..., ::-1] for f in images])
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
    for name, workers in (("one", 1), ("two", 2)):
        prepare(*world, tmp_path / name, SETTINGS, Work(3, workers, shard_mb=0))
    assert len(list((tmp_path / "one/videos").glob("*of-00003"))) == 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Interrupt(BaseException):
    pass


def test_an_interrupted_run_is_continued(world, tmp_path, monkeypatch):
    work = Work(shard_mb=0)  # a shard for every video
    prepare(*world, tmp_path / "whole", SETTINGS, work)
    real, written = storing.write_videos, []

    def failing(folder, root, block, settings):
        if len(written) == 2:
            raise Interrupt
        written.append(block[0][0])
        return real(folder, root, block, settings)

    monkeypatch.setattr(storing, "write_videos", failing)
    with pytest.raises(Interrupt):
        prepare(*world, tmp_path / "out", SETTINGS, work)
    assert not (tmp_path / "out").exists()
    written.clear()
    # Only the shard of a video that changed meanwhile is written again.
    os.utime(world[1] / "0.mp4", (1, 1))
    prepare(*world, tmp_path / "out", SETTINGS, work)
    assert written == ["0.mp4", "2.mp4"]
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert {n: c for n, c in again.items() if n != "manifest.json"} == {
        n: c for n, c in whole.items() if n != "manifest.json"
    }


def test_a_full_disk_in_the_middle_leaves_what_was_finished(world, tmp_path, monkeypatch):
    real = array_records.ArrayRecordWriter

    class Full:
        def __init__(self, *arguments):
            self._writer = real(*arguments)

        def write(self, data):
            if b"2.mp4" in data:
                raise RuntimeError("No space left\non device")
            self._writer.write(data)

        def close(self):
            self._writer.close()

    with monkeypatch.context() as patch:
        patch.setattr(array_records, "ArrayRecordWriter", Full)
        with pytest.raises(InputError, match="cannot be written: No space left on device; run"):
            prepare(*world, tmp_path / "out", SETTINGS, Work(shard_mb=0))
    left = sorted(path.suffix for path in (tmp_path / "out.partial/videos").iterdir())
    assert left == ["", "", ".json", ".json"] and not (tmp_path / "out").exists()
    prepare(*world, tmp_path / "out", SETTINGS, Work(shard_mb=0))
    assert len(shards.open_shards(tmp_path / "out", verify=True)) == 6


def test_frames_are_read_back_and_compared(world, tmp_path, monkeypatch):
    """A video whose packets do not give the frames of the file is refused, with its pairs."""
    real = storing.dissect

    def other(video):
        *parts, header = real(video)
        if video.reader.name.endswith("1.mp4"):
            header = header._replace(turns=1)
        yield from (*parts, header)

    monkeypatch.setattr(storing, "dissect", other)
    manifest = prepare(*world, tmp_path / "out", SETTINGS)
    assert (manifest["pairs"], manifest["rejected"]) == (4, 2)
    assert "do not give the frames of the file" in (tmp_path / "out/rejected.jsonl").read_text()
    assert list(shards.open_shards(tmp_path / "out").videos.names()) == ["0.mp4", "2.mp4"]


def test_files_of_the_same_packets_that_show_them_otherwise(tmp_path):
    """Turned by a quarter, or without the frames that an edit list hides."""
    names = ("constant.mp4", "rotated.mp4", "trimmed.mp4")
    for name in names:
        clips.VIDEOS[name](tmp_path / name)
    (tmp_path / "pairs.json").write_text(json.dumps([pair(i, n) for i, n in enumerate(names)]))
    prepare(tmp_path / "pairs.json", tmp_path, tmp_path / "out", SETTINGS)
    opened = shards.open_shards(tmp_path / "out")
    for record, name in zip(opened, names, strict=True):
        found = sample_frames(opened.videos.video(record.video_digest), "uniform", 4)
        expected = sample_frames(tmp_path / name, "uniform", 4)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_streams_without_times_or_of_two_sizes(tmp_path):
    """Frames without times are counted; a proxy needs their times, a batch one size."""
    raw = clips.write(tmp_path / "raw.h264", 40, b_frames=0)
    small = clips.write(tmp_path / "small.h264", 40, b_frames=0, size=(64, 48))
    (tmp_path / "both.h264").write_bytes(raw.read_bytes() + small.read_bytes())
    small.unlink()
    clips.write(tmp_path / "fine.mp4", 9)
    reasons = {}
    for proxy in (0, 48):
        out = tmp_path.parent / f"{tmp_path.name}-{proxy}"
        prepare(None, tmp_path, out, Settings(num_frames=4, proxy=proxy))
        lines = (out / "rejected.jsonl").read_text().splitlines()
        reasons[proxy] = [json.loads(line)["reason"] for line in lines]
    (sizes,) = reasons[0]
    assert sizes.startswith("both.h264: frame ") and sizes.endswith("is 64x48 pixels")
    assert reasons[48][-1] == "raw.h264: its frames have no times, which a proxy needs"


def test_a_proxy_is_smaller_and_keeps_every_frame_and_time(world, tmp_path):
    render(world[1] / "0.mp4", 0, size=(160, 96), frames=40)
    prepare(*world, tmp_path / "out", Settings(num_frames=4, proxy=48))
    opened = shards.open_shards(tmp_path / "out")
    source = world[1] / "0.mp4"
    with (
        video.opened(source) as file,
        video.opened(opened.videos.video(opened[0].video_digest)) as v,
    ):
        assert (v.info.num_frames, v.info.fps) == (file.info.num_frames, file.info.fps)
        np.testing.assert_allclose(v.timestamps, file.timestamps, atol=1e-3)
        assert (v.info.width, v.info.height) == (80, 48)
        assert np.diff(v.timeline.keys).max() == 8  # a key frame a second


def test_a_proxy_of_an_avi_with_b_frames(tmp_path, monkeypatch):
    """FFmpeg gives its frames their times in decoding order. What cannot be encoded is listed."""
    (tmp_path / "in").mkdir()
    source = clips.write(tmp_path / "in/b.avi", 40)
    prepare(None, tmp_path / "in", tmp_path / "out", Settings(num_frames=4, proxy=48))
    (line,) = shards.open_shards(tmp_path / "out").videos.names()
    stored = shards.open_shards(tmp_path / "out").videos.named(line)
    with video.opened(source) as file, video.opened(stored) as proxy:
        np.testing.assert_allclose(proxy.timestamps, file.timestamps, atol=1e-3)
        frames, expected = (v.select(lambda _: np.arange(40))[1] for v in (proxy, file))
        near = expected.astype(int)[:, ::2, ::2]
        errors = [np.abs(frames[20] - near[i]).mean() for i in range(40)]
        assert np.argmin(errors) == 20

    def refuse(*_):
        raise av.error.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr("tpo_jax.video.proxy._encode", refuse)
    with pytest.raises(InputError, match=r"in: b.avi: no proxy of it: Invalid argument$"):
        work = Work(workers=1, strict=True)
        prepare(None, tmp_path / "in", tmp_path / "no", Settings(num_frames=4, proxy=48), work)


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
    segments = [[0.5, 1.5], [0.5, 1.6], [0.5, 1.7], [1.5, 9.0], [1.5, 1.6], None]
    records = json.loads(world[0].read_text())
    records = [r | {"segment": s} for r, s in zip(records, segments, strict=True)]
    world[0].write_text(json.dumps(records))
    manifest = prepare(*world, tmp_path / "out", SETTINGS)
    assert (manifest["pairs"], manifest["rejected"]) == (3, 3)
    lines = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [
        "segment ends at 1.7 s of a video of 1.50 s",
        "segment starts at 1.5 s of a video of 1.50 s",
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
    record, names = opened[6], opened.videos.names()
    assert (record.video_id, record.rejected_video_id) == ("0.mp4", "1.mp4")
    assert (record.kind, record.chosen, record.rejected) == ("video", "A cat.", "A cat.")
    assert record.video_digest == names["0.mp4"]
    assert record.rejected_video_digest == names["1.mp4"]
    # The train step's rows hold one video: they are refused by number, or left out by the mixing.
    with pytest.raises(InputError, match="1 of 7 pairs are one answer on two videos"):
        select(opened.index)
    assert len(select(opened.index, limit=6)) == 6
    with pytest.raises(InputError, match="no pair is left of 0 localized, 0 comprehensive"):
        select(opened.index, (1.0, 1.0))


def test_a_bad_video_is_a_complaint_before_the_other_is_read():
    pair = pair_of(
        {"video": "a.mp4", "rejected_video": "b.mp4", "prompt": "Which?", "chosen": "This."}, 0
    )
    for name in pair.videos:
        assert complaint(pair, {name: {"error": f"{name}: broken"}}) == f"{name}: broken"
        assert complaint(pair, {name: {"digest": "1", "duration": 1.0, "fps": 1.0}}) is None
