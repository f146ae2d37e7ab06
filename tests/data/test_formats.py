"""Public shapes of preference data give the same pairs as our own."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpo_jax.data.columns import parse_columns
from tpo_jax.data.formats import adapt
from tpo_jax.data.pairs import read_pairs
from tpo_jax.errors import InputError

GOOD = {"video": "a.mp4", "prompt": "Who?", "chosen": "A cat.", "rejected": "A dog."}
QUESTIONS = [
    {**GOOD, "prompt": f"Who {i}?", "chosen": f"Cat {i}", "rejected": f"Dog {i}"} for i in range(6)
]


def texts(pairs) -> list[tuple[str, ...]]:
    return [(p.video, p.question, p.chosen, p.rejected) for p in pairs]


EXPECTED = [tuple(r[name] for name in GOOD) for r in QUESTIONS]


def read(path, **columns):
    pairs, rejections = read_pairs(path, columns=columns)
    assert not rejections
    return texts(pairs)


def write_csv(path, records):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("video", "prompt", "chosen", "rejected"),
        ("Video Path", "Question", "Preferred Response", "Dis-preferred Response"),
        ("video_id", "query", "chosen_answer", "rejected_answer"),
    ],
)
def test_columns_are_recognised(tmp_path, names):
    records = [dict(zip(names, r.values(), strict=True)) | {"score": 1} for r in QUESTIONS]
    assert read(write_csv(tmp_path / "d.csv", records)) == EXPECTED


def test_columns_of_any_name_by_flag(tmp_path):
    names = ("clip", "q", "a+", "a-")
    records = [dict(zip(names, r.values(), strict=True)) for r in QUESTIONS]
    path = write_csv(tmp_path / "d.csv", records)
    with pytest.raises(InputError, match=r"hold video, .*; it has clip, q, a\+, a-; say --column"):
        read_pairs(path)
    columns = parse_columns(["video=clip", "prompt=q", "chosen=a+", "rejected=a-"])
    assert read(path, **columns) == EXPECTED
    jsonl = tmp_path / "d.jsonl"
    jsonl.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read(jsonl, **columns) == EXPECTED
    with pytest.raises(InputError, match="no column 'clap'; it has clip, q"):
        read_pairs(path, columns=columns | {"video": "clap"})
    for wrong in ("video", "=x", "film=x", "video="):
        with pytest.raises(InputError, match="must be role=name"):
            parse_columns([wrong])


def test_one_row_per_answer(tmp_path):
    rows = []
    for i, r in enumerate(QUESTIONS):
        good = {"video": r["video"], "question": r["prompt"], "answer": r["chosen"], "label": 1}
        bad = {**good, "answer": r["rejected"], "label": 0}
        rows += [good, bad] if i % 2 else [bad, good]
    path = write_csv(tmp_path / "d.csv", rows)
    assert read(path) == EXPECTED
    write_csv(path, [*rows[:-1], {**rows[-1], "label": "perhaps"}])
    pairs, rejections = read_pairs(path)
    assert texts(pairs) == EXPECTED[:-1]
    assert [r.where for r in rejections] == ["d.csv:13", "d.csv:12"]
    assert "preferred must be one of" in rejections[0].reason
    assert "no other answer to this question" in rejections[1].reason


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [("all", [0, 1, 2, 3, 4, 5]), ("first:2", [0, 1]), ("end:30%", [4, 5]), ("end:0", [])],
)
def test_a_mixture(tmp_path, strategy, kept):
    (tmp_path / "part").mkdir()
    lines = "".join(json.dumps(r | {"id": i}) + "\n" for i, r in enumerate(QUESTIONS))
    (tmp_path / "part/a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps([{**GOOD, "id": 0}]))
    mixture = [
        {"json_path": "part/a.jsonl", "sampling_strategy": strategy},
        {"json_path": str(tmp_path / "b.json")},
    ]
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump({"datasets": mixture}))
    pairs, _ = read_pairs(path)
    assert texts(pairs) == [*(EXPECTED[i] for i in kept), tuple(GOOD.values())]
    assert [p.id for p in pairs] == [*(f"a/{i}" for i in kept), "b/0"]
    mixture[0]["sampling_strategy"] = "random:50%"
    path.write_text(yaml.safe_dump({"datasets": mixture}))
    drawn = read(path)
    assert drawn == read(path) and len(drawn) == 4 and set(drawn[:3]) < set(EXPECTED)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ([{"json_path": "a.jsonl", "sampling_strategy": "some"}], "must be all, first:N"),
        ([{"json_path": "none.jsonl"}], "none.jsonl: cannot be read: No such file"),
        ([{"path": "a.jsonl"}], "must have a json_path"),
        ([], "holds no pair"),
    ],
)
def test_wrong_mixtures_are_named(tmp_path, datasets, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "mix.yaml")


def turn(who, text, **more):
    return {"role": who, "content": text, **more}


SHAPES = {
    "llava": {
        "video": "a.mp4",
        "conversations": [{"from": "human", "value": "<image>\nWho?"}],
        "chosen": "A cat.",
        "rejected": "A dog.",
        "answer": "A cat.",
    },
    "trl explicit": {
        "prompt": [turn("user", "Who?")],
        "chosen": [turn("assistant", "A cat.")],
        "rejected": [turn("assistant", "A dog.")],
        "videos": ["a.mp4"],
    },
    "trl implicit": {
        "chosen": [turn("user", "Who?"), turn("assistant", "A cat.")],
        "rejected": [turn("user", "Who?"), turn("assistant", "A dog.")],
        "video": "a.mp4",
    },
    "trl parts": {
        "prompt": [
            turn("user", [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Who?"}])
        ],
        "chosen": [turn("assistant", [{"type": "text", "text": "A cat."}])],
        "rejected": turn("assistant", "A dog."),
    },
    "video feature": {**GOOD, "video": {"bytes": None, "path": "a.mp4"}},
    "turns of the answer": {
        **GOOD,
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_records(tmp_path, shape):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([SHAPES[shape]]))
    assert read(path) == [tuple(GOOD.values())]


@pytest.mark.parametrize("saved", ["parquet", "hub", "disk", "dict"])
def test_folders_of_datasets(tmp_path, saved):
    records = [
        {
            "video": {"bytes": None, "path": r["video"]},
            "prompt": [turn("user", r["prompt"])],
            "chosen": [turn("assistant", r["chosen"])],
            "rejected": [turn("assistant", r["rejected"])],
        }
        for r in QUESTIONS
    ]
    table = pyarrow.Table.from_pylist(records)
    if saved == "parquet":
        path = tmp_path / "d.parquet"
        pyarrow.parquet.write_table(table, path)
    elif saved == "hub":
        path = tmp_path / "repo"
        (path / "data").mkdir(parents=True)
        pyarrow.parquet.write_table(table[:4], path / "data/train-00000-of-00002.parquet")
        pyarrow.parquet.write_table(table[4:], path / "data/train-00001-of-00002.parquet")
        pyarrow.parquet.write_table(table, path / "data/test-00000-of-00001.parquet")
    else:
        datasets = pytest.importorskip("datasets", reason="datasets writes what is read here")
        path = tmp_path / "saved"
        data = datasets.Dataset(table)
        if saved == "dict":
            data = datasets.DatasetDict({"test": data.select([0]), "train": data})
        data.save_to_disk(str(path))
    assert read(path) == EXPECTED


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no Parquet file"):
        read_pairs(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    with pytest.raises(InputError, match="name the folder of one of its splits: a, b"):
        read_pairs(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"none")
    with pytest.raises(InputError, match="x.parquet: cannot be read"):
        read_pairs(tmp_path / "x.parquet")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "video", "text"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = ["video", "videos", "prompt", "question", "conversations", "chosen", "rejected", "answer"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_record_is_adapted_or_refused(record):
    before = json.dumps(record)
    try:
        assert isinstance(adapt(record), dict)
    except ValueError as error:
        assert "\n" not in str(error)
    assert json.dumps(record) == before


@given(content=st.text(max_size=200), suffix=st.sampled_from(["csv", "jsonl", "json", "yaml"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"p.{suffix}"
    path.write_text(content, encoding="utf-8", errors="replace")
    try:
        read_pairs(path)
    except InputError as error:
        assert "\n" not in str(error)
