"""Real-life folders and videos, wrong configs, balance."""

import dataclasses
import json
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest

from tests.video.clips import write
from tpo_jax.curation.balance import balance
from tpo_jax.curation.config import Balance
from tpo_jax.curation.run import curate
from tpo_jax.curation.templates import TYPES
from tpo_jax.curation.units import Unit
from tpo_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("fast_charts")


def failures_of(workdir) -> dict[str, str]:
    lines = (workdir / "set_aside.jsonl").read_text().splitlines()
    return {line["id"]: line["reason"] for line in map(json.loads, lines)}


def test_unusable_videos_fail_with_a_reason(world_config, world_videos, tmp_path):
    folder = tmp_path / "videos"
    shutil.copytree(world_videos, folder)
    write(folder / "one.mp4", 1)
    write(folder / "short.mp4", 40)
    (folder / "text.txt").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes((folder / "00000.mp4").read_bytes()[:900])
    shutil.copy(folder / "00001.mp4", folder / "00001.mkv")
    (folder / "frames").mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"frames/{i}.png"), np.zeros((8, 8, 3), np.uint8))
    world_config.videos.folder = str(folder)
    report = curate(world_config, tmp_path / "run")
    failures = failures_of(tmp_path / "run")
    for name, reason in {
        "one": "has only one frame",
        "text": "no video stream",
        "empty": "empty file",
        "cut": "truncated",
        "00001.mp4": "its id is already that of 00001.mkv",
        "short#0": "not a video of the synthetic world",  # says the captioner, also of the folder
        "frames#0": "not a video of the synthetic world",
    }.items():
        assert reason in failures[name], name
    # No localized segment fits into 1.3 s: only the whole video is asked about.
    assert "short#3" not in failures
    assert report["yields"]["videos"]["items"] == 7 and report["pairs"]


def test_one_video_of_one_frame(world_config, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "one.mp4", 1)
    world_config.videos.folder = str(folder)
    with pytest.raises(InputError, match=r"no pair is left, .*: one: has only one frame"):
        curate(world_config, tmp_path / "run")


def test_segments_longer_than_their_video(world_config, tmp_path, world_videos):
    """Segments lie inside the video; if none fits, only the whole video is asked about."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(world_videos / "00001.mp4", folder)  # 48 s
    world_config.videos.folder = str(folder)
    world_config.segments.min_seconds, world_config.segments.max_seconds = 90.0, 200.0
    world_config.balance.localized = 0.0
    assert set(curate(world_config, tmp_path / "run")["kinds"]) == {"comprehensive"}
    world_config.segments.comprehensive = 0
    with pytest.raises(InputError, match=r"no pair is left, "):
        curate(world_config, tmp_path / "other")
    line = (tmp_path / "other/segments.jsonl").read_text().splitlines()[1]
    assert "no segment of 90 s fits into 0.5 of the video" in line


def test_a_folder_without_video(world_config, tmp_path):
    world_config.videos.folder = str(tmp_path / "nothing")
    with pytest.raises(InputError, match="nothing: no such folder"):
        curate(world_config, tmp_path / "run")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="nothing: the folder is empty"):
        curate(world_config, tmp_path / "run")
    (tmp_path / "nothing/a.txt").write_text("a")
    with pytest.raises(InputError, match=r"no pair is left, .*: a: no video stream"):
        curate(world_config, tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("videos", "folder", "", "videos.folder is empty"),
        ("questions", "types", (1.0,), "questions.types must be 8 shares"),
        ("questions", "per_segment", 9, "questions.per_segment must lie between"),
        ("answers", "localized_rejected", ("drop:3",), "answers.localized_rejected: view 'drop:3'"),
        ("answers", "comprehensive_chosen", "rest", "is for localized pairs"),
        ("answers", "localized_rejected", (), "must name at least one view"),
        ("segments", "max_share", 1.0, "a max_share between 0 and 1"),
        ("balance", "localized", 2.0, "balance.localized=2.0"),
        ("judge", "asks", "name", "judge.asks='name' must be one of verdict, question"),
        ("judge", "asks", "question", "judge.asks='question' needs a model"),
        ("judge", "prompt", "mine", "no prompt 'mine'; choose from "),
        ("judge", "backend", "human", "judge.backend='human' must be one of"),
        ("captioner", "num_frames", 0, "captioner.num_frames=0"),
        ("answerer", "backend", "local", "answerer has no model: set local.checkpoint"),
        ("answerer", "backend", "openai", "answerer has no model: set openai.model"),
    ],
)
def test_wrong_settings_are_named(world_config, tmp_path, section, field, value, message):
    with world_config.ignore_type():
        world_config[section][field] = value
    with pytest.raises(InputError, match=message):
        curate(world_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def unit(i: int, kind: str, type_: str, video: int = 0, longer: int = 0) -> Unit:
    return Unit(
        id=f"{i:03d}",
        video=f"{video}.mp4",
        kind=kind,
        type=type_,
        question=f"What is {i}?",
        chosen="a" * 10,
        rejected="b" * (10 + longer),
    )


def test_balance():
    types, shares = list(TYPES), list(TYPES.values())
    units = [
        unit(i, "localized" if i % 3 else "comprehensive", types[i % 8], i % 20) for i in range(300)
    ]

    def balanced(**changes):
        return balance(units, Balance(**changes), shares, 0)

    kept, fell = balanced()
    assert Counter(u.kind for u in kept) == {"localized": 100, "comprehensive": 100}
    assert fell == {"beyond the proportions": 100}
    kept, _ = balanced(localized=0.8, pairs=100)
    assert Counter(u.kind for u in kept) == {"localized": 80, "comprehensive": 20}
    kept, _ = balanced(pairs=100, types=True)
    found = Counter(u.type for u in kept)
    assert all(abs(found[t] - s) <= 2.1 for t, s in TYPES.items())
    kept, _ = balanced(per_video=2)
    assert max(Counter(u.video for u in kept).values()) == 2
    # The order of the units does not matter.
    assert balance(units[::-1], Balance(pairs=50), shares, 1) == balance(
        units, Balance(pairs=50), shares, 1
    )


def test_duplicates_and_unequal_lengths_are_removed():
    units = [unit(0, "localized", "action"), unit(1, "localized", "action", longer=40)]
    double = dataclasses.replace(unit(2, "localized", "action"), question="what is  0")
    kept, fell = balance([*units, double], Balance(localized=1.0, max_length_ratio=3.0), [1] * 8, 0)
    assert len(kept) == 1 and kept[0].id in ("000", "002")
    assert fell == {"the same question": 1, "one answer much longer": 1}
