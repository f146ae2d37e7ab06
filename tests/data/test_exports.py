"""Lists for other frameworks give the pairs again."""

import json

import pytest

from tests.video import clips
from tpo_jax.data.exports import FORMATS, export
from tpo_jax.data.pairs import read_pairs
from tpo_jax.data.preparation import Settings, prepare

GOOD = {"video": "a.mp4", "prompt": "Who?", "chosen": "A cat.", "rejected": "A dog."}
TURNS = [["Who?", "A man."], ["When?", "Now."]]
RECORDS = [
    GOOD,
    {**GOOD, "system": "Be brief.", "history": TURNS, "prompt": "Where?"},
    {**GOOD, "history": TURNS, "prompt": "<video> Where?"},
    {**GOOD, "history": [TURNS[0], ["<image>\nWhen?", "Now."]], "video": "b.mp4"},
    {**GOOD, "chosen": "The <video> tag."},
    {k: v for k, v in GOOD.items() if k != "rejected"} | {"rejected_video": "b.mp4"},
    {**GOOD, "kind": "localized", "segment": [0, 0.1], "provenance": {"model": "base"}},
    {**GOOD, "video": "copy.mp4", "provenance": {"manipulation": "cut", "verdict": "worse"}},
    {**GOOD, "video": "b.mp4", "video_id": "a second one", "id": "named"},
]
LEFT_OUT = {"swift": [4], "trl": [5]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name in ("a.mp4", "b.mp4"):
        clips.write(folder / name, 4 + len(name) * (name == "b.mp4"), gop=4)
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "pairs.json").write_text(json.dumps(RECORDS))
    prepare(folder / "pairs.json", folder, folder / "shards", Settings(num_frames=2))
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_lists_give_the_pairs_again(prepared, name, capsys):
    export(prepared / "shards", prepared, [name])
    assert "1 pairs are left out" in capsys.readouterr().err
    written = prepared / f"shards/pairs_{name}.jsonl"
    again, rejections = read_pairs(written, videos=prepared)
    pairs, _ = read_pairs(prepared / "pairs.json")
    wanted = [pair for i, pair in enumerate(pairs) if i not in LEFT_OUT[name]]
    assert not rejections
    assert [pair.texts() for pair in again] == [pair.texts() for pair in wanted]
    for field in ("videos", "segment", "provenance"):
        assert [getattr(p, field) for p in again] == [getattr(p, field) for p in wanted]
    # Absolute paths, which are valid without the folder.
    records = [json.loads(line) for line in written.read_text().splitlines()]
    assert {path for record in records for path in record["videos"]} == {
        str(prepared / "a.mp4"),
        str(prepared / "b.mp4"),
        str(prepared / "copy.mp4"),
    }


def test_swift_drops_no_record(prepared, tmp_path):
    """ms-swift refuses an answer that is rejected for itself, and a column that is null."""
    pairs, _ = read_pairs(prepared / "pairs.json")
    one_video = [RECORDS[i] for i, pair in enumerate(pairs) if len(pair.videos) == 1]
    (tmp_path / "pairs.json").write_text(json.dumps(one_video))
    prepare(tmp_path / "pairs.json", prepared, tmp_path / "shards", Settings(num_frames=2))
    for shards, rejected in (
        (prepared / "shards", {"rejected_messages", "rejected_videos"}),
        (tmp_path / "shards", {"rejected_response"}),
    ):
        export(shards, prepared, ["swift"])
        lines = (shards / "pairs_swift.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            assert {name for name in record if name.startswith("rejected")} == rejected
            assert all(record[name] for name in rejected)
            assert record.get("rejected_response") != record["messages"][-1]["content"]


def test_messages_of_trl_have_one_form(prepared):
    """A table has one type a column: all contents are lists of parts."""
    export(prepared / "shards", prepared, ["trl"])
    for line in (prepared / "shards/pairs_trl.jsonl").read_text().splitlines():
        record = json.loads(line)
        messages = [*record["prompt"], *record["chosen"], *record["rejected"]]
        parts = [part for message in messages for part in message["content"]]
        assert [part["type"] for part in parts].count("video") == 1
        assert {part["type"] for part in parts} == {"text", "video"}
