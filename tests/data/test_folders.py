"""A store in the place of the folder it was made of: the same names, the same frames."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.test_preparation import contents, pair, render
from tpo_jax.data import folders
from tpo_jax.data.pairs import read_pairs
from tpo_jax.data.preparation import Settings, Work, prepare
from tpo_jax.data.shards import open_shards
from tpo_jax.errors import InputError
from tpo_jax.video.decode import VideoError
from tpo_jax.video.sampling import sample_frames

NAMES = ["b/same.mp4", "b/z.mp4", "b-c.mp4"]  # in the order of paths
SETTINGS = Settings(num_frames=4)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Videos, two of them equal, and what else lies in a folder."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("b/frames", ".hidden"):
        (folder / name).mkdir(parents=True)
    for i, name in enumerate(("b-c.mp4", "b/z.mp4", ".hidden/y.mp4")):
        render(folder / name, i + 1)
    shutil.copy(folder / "b-c.mp4", folder / "b/same.mp4")
    cv2.imwrite(str(folder / "b/frames/0.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / "notes.txt").write_text("no video")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    return folder


@pytest.fixture(scope="module")
def store(media, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores") / "store"
    manifest = prepare(None, media, directory, SETTINGS)
    assert (manifest["pairs"], manifest["videos"], manifest["rejected"]) == (0, 3, 3)
    return directory


def test_names_are_those_of_the_folder(media, store):
    for kind in (Path, str):
        assert folders.names_in(kind(media)) == ["b/frames", *NAMES, "gone.mp4", "notes.txt"]
        assert folders.names_in(kind(store)) == NAMES
    lines = (store / "rejected.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert reasons[0].startswith("b/frames: ") and reasons[2].startswith("notes.txt: ")
    assert reasons[1].startswith("gone.mp4: ")
    for folder in (media, store):
        with pytest.raises(VideoError, match="a folder of videos or a store, name one video"):
            sample_frames(folder, "fps", 9)


def test_a_store_that_lost_its_manifest_is_no_plain_folder(store, tmp_path):
    lost = shutil.copytree(store, tmp_path / "lost")
    (lost / "manifest.json").unlink()
    for use in (folders.names_in, lambda folder: folders.video_at(folder / NAMES[0])):
        with pytest.raises(InputError, match=r"lost: stored videos without their manifest.json"):
            use(lost)


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    """Each once: what a link shows of the folder itself is there by another name."""
    for name in ("in/a.mp4", "in/deep/b.mp4", "out/c.mp4", "out/further/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("in/again", "."), ("in/linked", "../out"), ("in/twice", "../out")):
        (tmp_path / link).symlink_to(target)
    (tmp_path / "out/back").symlink_to("../in")
    found = folders.names_in(tmp_path / "in")
    assert found == ["a.mp4", "deep/b.mp4", "linked/c.mp4", "linked/further/d.mp4"]


def test_a_store_does_not_hold_itself(media):
    with pytest.raises(InputError, match=r"--output=.*inside: lies in --videos="):
        prepare(None, media, media / "inside", SETTINGS)
    assert not list(media.glob("inside*"))


def test_a_path_may_lead_into_a_store(media, store, monkeypatch):
    for name in NAMES:
        assert folders.video_at(media / name) == media / name
        found, expected = (
            sample_frames(folders.video_at(f / name), "fps", 9) for f in (store, media)
        )
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert folders.find_video(store, ["none.mp4", name]) == store / name
    monkeypatch.chdir(store.parent)
    assert folders.video_at("store/b/z.mp4").name == "b/z.mp4"
    for folder, named in ((media, ""), (store, f" in the store {store}")):
        with pytest.raises(InputError, match=f"{folder}/no.mp4: no such video{named}$"):
            folders.find_video(folder, ["no.mp4", "no.mkv"])
    assert folders.video_at(media / "no.mp4") == media / "no.mp4"
    for name in ("no.mp4", "x" * 300, "nul\0"):
        with pytest.raises(VideoError, match=f"no such video in the store {store}$"):
            folders.video_at(store / name)


def test_a_store_of_frames_is_no_folder_of_videos(media, tmp_path):
    prepare(None, media / "b", tmp_path / "images", Settings(num_frames=2, frames="png"))
    for wrong in (folders.names_in, lambda folder: folders.video_at(folder / "z.mp4")):
        with pytest.raises(InputError, match="images: holds png frames, not videos"):
            wrong(tmp_path / "images")


def test_a_store_that_is_made_again_is_read_again(media, tmp_path):
    for number, name in enumerate(NAMES[:2]):
        (tmp_path / "in").mkdir()
        shutil.copy(media / name, tmp_path / "in")
        prepare(None, tmp_path / "in", tmp_path / "out", SETTINGS)
        os.utime(tmp_path / "out/manifest.json", ns=(number, number))
        assert folders.names_in(tmp_path / "out") == [name.rpartition("/")[2]]
        for folder in ("in", "out"):
            shutil.rmtree(tmp_path / folder)


def test_shards_of_a_store_are_those_of_its_files(media, store, tmp_path):
    """Packets are copied, pairs without a video rejected; a store of a store is a copy of it."""
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([pair(i, name) for i, name in enumerate([*NAMES, "none.mp4"])]))
    made = {}
    for name, videos in (("files", media), ("stored", store)):
        manifest = prepare(pairs, videos, tmp_path / name, SETTINGS)
        assert (manifest["pairs"], manifest["rejected"]) == (3, 1)
        made[name] = contents(tmp_path / name)
        reason = json.loads(made[name].pop("rejected.jsonl"))["reason"]
        assert reason.startswith("none.mp4: no such")
        del made[name]["manifest.json"]  # it knows the versions of the files
    assert made["stored"] == made["files"]
    prepare(None, store, tmp_path / "again", SETTINGS)
    copied = contents(tmp_path / "again")
    assert {**contents(store), **copied}.keys() - copied.keys() == {"rejected.jsonl"}
    assert all(contents(store)[n] == c for n, c in copied.items() if n != "manifest.json")
    prepare(None, store, tmp_path / "proxy", Settings(num_frames=2, proxy=24))
    assert folders.names_in(tmp_path / "proxy") == NAMES


def test_absolute_paths_of_a_store(media, store, tmp_path):
    """A store cannot tell them, through links or not: the reason says what to write."""
    (tmp_path / "link").symlink_to(media)
    given = [media / NAMES[0], tmp_path / "link" / NAMES[2], media / "none.mp4", store / NAMES[1]]
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([pair(i, str(path)) for i, path in enumerate(given)]))
    (kept,), rejections = read_pairs(pairs, videos=store)
    assert kept.video == NAMES[1]
    line = f"{store} is a store, which does not know where its files lay; write the path inside"
    ends = [f"; it holds a {NAMES[0]!r}", f"; it holds a {NAMES[2]!r}", "the folder it was made of"]
    for rejection, end in zip(rejections, ends, strict=True):
        assert line in rejection.reason and rejection.reason.endswith(end)
    kept, _ = read_pairs(pairs, videos=media)
    assert [p.video for p in kept] == [NAMES[0], NAMES[2], "none.mp4"]


def test_nothing_to_store(media, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="--videos=.*in: holds no video"):
        prepare(None, tmp_path / "in", tmp_path / "out", SETTINGS)
    shutil.copy(media / "notes.txt", tmp_path / "in")
    with pytest.raises(
        InputError, match="none of the 1 videos can be used, the first: .*notes.txt"
    ):
        prepare(None, tmp_path / "in", tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match="^.*in: notes.txt: no video stream"):
        prepare(None, tmp_path / "in", tmp_path / "out", SETTINGS, Work(strict=True))
    assert not list(tmp_path.glob("out*"))


def test_a_store_opens_as_shards_without_pairs(store):
    shards = open_shards(store, verify=True)
    assert len(shards) == 0 and shards.videos.names().keys() == {*NAMES}
