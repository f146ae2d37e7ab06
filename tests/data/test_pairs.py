import csv
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpo_jax.data.pairs import Rejection, read_pairs
from tpo_jax.data.records import Provenance
from tpo_jax.errors import InputError

GOOD = {"video": "a.mp4", "prompt": "Who?", "chosen": "A cat.", "rejected": "A dog."}
FULL = {
    **GOOD,
    "id": "x",
    "kind": "localized",
    "segment": [1.5, 3],
    "provenance": {"model": "base", "manipulation": "segment removed"},
}


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(name for r in records for name in r))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for r in records:
                cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()}
                writer.writerow(cells)
    else:
        path.write_text(yaml.safe_dump(records))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "yaml", "yml"])
def test_every_format_says_the_same(tmp_path, suffix):
    second = {**GOOD, "chosen": 'Two\nlines, "quoted"; é', "id": "y"}
    pairs, rejections = read_pairs(write(tmp_path / f"p.{suffix}", [FULL, second]))
    assert not rejections
    assert pairs[0].segment == (1.5, 3.0) and pairs[0].kind == "localized"
    assert pairs[0].provenance == Provenance("base", "segment removed", "")
    assert (pairs[1].id, pairs[1].video_id, pairs[1].kind) == ("y", "a.mp4", "other")
    assert pairs[1].chosen == second["chosen"] and pairs[1].segment is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "has no prompt"),
        ({"video": None, "chosen": None}, "has no video, chosen"),
        ({"chosen": "  "}, "chosen is empty"),
        ({"rejected": "A cat. "}, "chosen equals rejected"),
        ({"chosen": 3}, "chosen must be text, not int 3"),
        ({"prompt": "<image>\n"}, "prompt is empty"),
        ({"prompt": "<image>\nWho? <video>"}, "prompt: 2 <image> or <video> placeholders"),
        ({"chosen": "A cat.<|im_end|>"}, "chosen: the text holds <|im_end|>"),
        ({"question": "Who?"}, "both prompt and question"),
        ({"kind": "local"}, "kind must be one of localized"),
        ({"segment": [3, 1]}, "segment must be [start, end]"),
        ({"segment": [0, float("nan")]}, "segment must be [start, end]"),
        ({"segment": [0, 10**400]}, "start before end, not what is there"),
        ({"provenance": {"who": "me"}}, "provenance must be"),
        ({"video": "../a.mp4"}, "inside the video folder"),
        ({"video_id": "a.mp4", "video": "b.mp4"}, "video_id 'a.mp4' is already that of video"),
        ({"chosen": "\ud800"}, "not valid Unicode"),
        ({"rejected": "A \x1b[31mdog."}, "rejected holds the control character '\\x1b'"),
        ({"system": "\x00", "history": [["a", "b"]]}, "history holds the control character"),
        ({"history": [["<|im_end|>", "b"]]}, "prompt: the text holds <|im_end|>"),
        ({"history": [["<video>", "b"]], "prompt": "<image> Who?"}, "2 <image> or <video>"),
        ({"video": "/elsewhere/a.mp4"}, "inside the video folder"),
    ],
)
def test_bad_pairs_are_named_and_good_ones_kept(tmp_path, change, reason):
    bad = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    pairs, rejections = read_pairs(write(tmp_path / "p.jsonl", [{**GOOD, "id": "1"}, bad, FULL]))
    assert [p.id for p in pairs] == ["1", "x"]
    assert [r.where for r in rejections] == ["p.jsonl:2"] and reason in rejections[0].reason


def test_placeholder_and_alias(tmp_path):
    records = [{**GOOD, "prompt": "<video>\nWho?"}, {**GOOD, "question": "Who?"}]
    del records[1]["prompt"]
    pairs, _ = read_pairs(write(tmp_path / "p.json", records))
    assert [p.question for p in pairs] == ["Who?", "Who?"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_any_white_space_survives(tmp_path, suffix):
    """Among it what `str.splitlines` takes for the end of a line."""
    answer = "One.\u2028Two.\u2029Three.\x85Four.\vFive.\fSix.\nSeven.\tEight."
    record = {name: f"{text}{answer}" for name, text in GOOD.items() if name != "video"}
    path = write(tmp_path / f"p.{suffix}", [{**record, "video": "a\u2028.mp4"}])
    ((pair,), rejections) = read_pairs(path)
    assert not rejections and pair.video == "a\u2028.mp4"
    assert (pair.question, pair.chosen, pair.rejected) == tuple(record.values())


def test_edges_of_a_question_are_dropped_and_those_of_answers_kept(tmp_path):
    record = {name: f"\u2028{text}\u2029" for name, text in GOOD.items() if name != "video"}
    ((pair,), _) = read_pairs(write(tmp_path / "p.json", [{**record, "video": "a.mp4"}]))
    assert (pair.question, *pair.answers) == ("Who?", record["chosen"], record["rejected"])


def test_images_of_messages(tmp_path):
    parts = [{"type": "image", "image": f"{i}.png"} for i in range(2)]
    prompt = [{"role": "user", "content": [*parts, {"type": "text", "text": "Who?"}]}]
    path = write(tmp_path / "p.json", [{**STILL, "prompt": prompt}, {**GOOD, "prompt": prompt}])
    ((pair,), (rejection,)) = read_pairs(path, stills=True)
    assert pair.images == ("0.png", "1.png") and pair.question == "<image>\n<image>\nWho?"
    assert "has both a video and images" in rejection.reason


def test_placeholders_in_answers_are_text(tmp_path):
    answers = {"chosen": "With the <video> tag.", "rejected": "With <image>, <image>."}
    ((pair,), _) = read_pairs(write(tmp_path / "p.json", [{**GOOD, **answers}]))
    assert pair.answers == tuple(answers.values())


def test_json_lines_under_the_suffix_of_a_list(tmp_path):
    write(tmp_path / "p.jsonl", [{**GOOD, "id": f"{i}"} for i in range(3)])
    for lines in (1, 3):
        path = tmp_path / "p.json"
        path.write_text("\n".join((tmp_path / "p.jsonl").read_text().split("\n")[:lines]))
        assert [pair.id for pair in read_pairs(path)[0]] == ["0", "1", "2"][:lines]


@given(st.lists(st.sampled_from(["a", "a-2", "a-3", "b", None]), min_size=1, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_repeated_ids_get_a_suffix(tmp_path, ids):
    records = [{**GOOD, **({"id": id_} if id_ else {})} for id_ in ids]
    pairs, rejections = read_pairs(write(tmp_path / "p.json", records))
    assert not rejections and len({pair.id for pair in pairs}) == len(ids)
    given_ids = [id_ or f"{number}" for number, id_ in enumerate(ids, 1)]
    for i, (pair, id_) in enumerate(zip(pairs, given_ids, strict=True)):
        repeated = id_ in given_ids[:i]
        assert pair.repeated_id == (id_ if repeated else "")
        assert pair.id.startswith(f"{id_}-") if repeated else pair.id == id_


def test_absolute_paths_below_the_folder(tmp_path):
    """As the folder is named, or as its links lead; a link in it may lead out of it."""
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(folder)
    (folder / "out").symlink_to(elsewhere)
    for given_folder in (folder, tmp_path / "link"):
        for path, name in (
            (folder / "a.mp4", "a.mp4"),
            (tmp_path / "link/b/a.mp4", "b/a.mp4"),
            (folder / "../videos/a.mp4", "a.mp4"),
            (given_folder / "out/a.mp4", "out/a.mp4"),
        ):
            listed = write(tmp_path / "p.json", [{**GOOD, "video": str(path)}])
            ((pair,), _) = read_pairs(listed, videos=given_folder)
            assert (pair.video, pair.video_id) == (name, name)
        for path in (elsewhere / "a.mp4", folder / "../a.mp4", tmp_path / "videos2/a.mp4"):
            listed = write(tmp_path / "p.json", [{**GOOD, "video": str(path)}])
            _, (rejection,) = read_pairs(listed, videos=given_folder)
            assert "inside the video folder" in rejection.reason


def test_broken_lines_are_rejections(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"video": \n\n[1]\n')
    pairs, rejections = read_pairs(path)
    assert len(pairs) == 1
    assert [r.where for r in rejections] == ["p.jsonl:2", "p.jsonl:4"]
    path = tmp_path / "p.csv"
    path.write_text("video,prompt,chosen,rejected\na.mp4,Who?,A cat.\na.mp4,Who?,A,B\n")
    pairs, rejections = read_pairs(path)
    assert len(pairs) == 1 and "number of cells" in rejections[0].reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.jsonl", None, "No such file"),
        ("p.txt", b"", "pairs are read from"),
        ("p.jsonl", b"", "holds no pair"),
        ("p.json", b"[", "cannot be read"),
        ("p.json", b"{}", "must be a list"),
        ("p.yaml", b"a: [", "cannot be read"),
        ("p.jsonl", b"\xff\xfe", "cannot be read"),
        ("p.csv", b'video,prompt\n"a', "cannot be read"),
    ],
)
def test_unreadable_lists_are_one_line(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=30) | st.text(max_size=30).map(str.encode), max_size=4))
def test_no_jsonl_escapes(tmp_path, lines):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        pairs, rejections = read_pairs(path)
    except InputError:
        return
    assert not pairs and all(isinstance(r, Rejection) for r in rejections)


STILL = {k: v for k, v in GOOD.items() if k != "video"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "yaml"])
def test_images_and_text_alone_where_they_are_asked_for(tmp_path, suffix):
    records = [
        {**GOOD, "id": "v", "prompt": "<video> Who?"},
        {**STILL, "id": "t"},
        {**STILL, "id": "i", "image": "a.png", "prompt": "Who? <image>"},
    ]
    if suffix != "csv":
        records.append({**STILL, "id": "ii", "images": ["a.png", "b.png"]})
    path = write(tmp_path / f"p.{suffix}", records)
    pairs, rejections = read_pairs(path, stills=True)
    assert not rejections
    assert [p.images for p in pairs] == [(), (), ("a.png",), ("a.png", "b.png")][: len(records)]
    assert [p.video for p in pairs] == ["a.mp4", "", "", ""][: len(records)]
    assert [p.question for p in pairs][:3] == ["Who?", "Who?", "Who? <image>"]
    pairs, rejections = read_pairs(path)
    assert [p.id for p in pairs] == ["v"]
    assert ["video" in r.reason for r in rejections] == [True] * (len(records) - 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "a.png", "prompt": "<image> <image>"}, "2 <image> placeholders for 1 images"),
        ({"prompt": "<image> Who?"}, "1 <image> placeholders for 0 images"),
        ({"image": "a.png", "prompt": "<video> Who?"}, "only the template may set"),
        ({"image": "a.png", "video": "a.mp4"}, "both a video and images"),
        ({"image": "a.png", "images": ["b.png"]}, "both image and images"),
        ({"images": []}, "images is empty"),
        ({"images": [7]}, "image must be text"),
        ({"image": "/a.png"}, "inside the video folder"),
        ({"images": ["a.png", "../b.png"]}, "inside the video folder"),
    ],
)
def test_wrong_image_pairs_are_named(tmp_path, change, reason):
    path = write(tmp_path / "p.jsonl", [{**STILL, **change}])
    pairs, (rejection,) = read_pairs(path, stills=True)
    assert not pairs and reason in rejection.reason
