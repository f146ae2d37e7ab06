"""Lists of pairs and videos as people keep them, from beside the project, through `prepare`."""

import pytest

from tpo_jax.data.preparation import Settings, prepare
from tpo_jax.data.shards import open_shards
from tpo_jax.families.template import Message

TURNS = (Message("user", "<video>\nWho is in the picture?"), Message("assistant", "One person."))
SYSTEM = Message("system", "Answer in one sentence.")
SWIFT_SYSTEM = Message("system", "You are a helpful assistant.")
HAPPENS = ("What happens?", "A person talks.", "A dog runs.")
DOES = ("What does that person do?", "Talks to the camera.", "Leaves the room.")
# By file: history, question, chosen and rejected of every pair.
PAIRS = {
    "absolute_path.jsonl": [((), *HAPPENS)],
    "history_sharegpt.jsonl": [(TURNS, *DOES)],
    "history_trl.jsonl": [((SYSTEM, *TURNS), *DOES)],
    "lines.json": [((), *HAPPENS), ((), "And then?", *HAPPENS[1:])],
    "repeated_ids.jsonl": [
        ((), *HAPPENS),
        ((), "Where?", "Indoors.", "On a beach."),
        ((), "How many people?", "One.", "Seven."),
    ],
    "separators.csv": [
        ((), "What happens?", "A person talks.\u2028Then smiles.", "Nothing"),
        ((), "Where?", "Indoors\x0bat a desk", "On a beach"),
    ],
    "swift_messages.jsonl": [((SWIFT_SYSTEM,), *HAPPENS)],
    "swift_response.jsonl": [((), *HAPPENS)],
    "tag_in_answer.jsonl": [
        ((), "How is a clip put on a page?", "With the <video> tag.", "With the <image> tag.")
    ],
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_as_people_keep_them(shared_cases, tmp_path, name):
    videos = shared_cases / "videos"
    text = (shared_cases / "pairs" / name).read_bytes().decode()
    path = tmp_path / name
    path.write_bytes(text.replace("/ABSOLUTE/PATH/OF/THE/VIDEO/FOLDER", str(videos)).encode())
    manifest = prepare(path, videos, tmp_path / "out", Settings(num_frames=2))
    records = open_shards(tmp_path / "out").index
    assert [(r.history, r.question, r.chosen, r.rejected) for r in records] == PAIRS[name]
    assert {r.video_id for r in records} == {"clip.mp4"} and not manifest["rejected"]
    assert manifest["repeated_ids"] == (2 if name == "repeated_ids.jsonl" else 0)
    if manifest["repeated_ids"]:
        assert [r.id for r in records] == ["video-1", "video-1-2", "video-1-3"]
