"""Public shapes of preference data give the same pairs as our own."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpo_jax.data.columns import parse_columns
from tpo_jax.data.conversations import adapt
from tpo_jax.data.pairs import read_pairs
from tpo_jax.errors import InputError
from tpo_jax.families.template import Message

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


def test_columns_of_json_by_any_name(tmp_path):
    spans = ["[1, 2]", "", "[0.5, 3]", "", "", "nothing"]
    records = [r | {"span": span} for r, span in zip(QUESTIONS, spans, strict=True)]
    path = write_csv(tmp_path / "d.csv", records)
    pairs, [rejection] = read_pairs(path, columns={"segment": "span"})
    assert [pair.segment for pair in pairs] == [(1.0, 2.0), None, (0.5, 3.0), None, None]
    assert "segment: not JSON" in rejection.reason


def test_answers_on_different_images_are_no_pair(tmp_path):
    rows = [
        {"image": image, "question": "Which colour?", "answer": f"{image} {label}", "label": label}
        for label in (1, 0)
        for image in ("a.png", "b.png")
    ]
    pairs, rejections = read_pairs(write_csv(tmp_path / "d.csv", rows), stills=True)
    assert not rejections
    assert [(pair.images, pair.chosen, pair.rejected) for pair in pairs] == [
        (("a.png",), "a.png 1", "a.png 0"),
        (("b.png",), "b.png 1", "b.png 0"),
    ]


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
    "alpaca": {
        **{k: GOOD[k] for k in ("chosen", "rejected")},
        "instruction": "Who?",
        "input": "",
        "videos": ["a.mp4"],
    },
    "null fields": {**GOOD, "id": None, "kind": None, "segment": None, "question": None},
    "messages that say the same": {
        **GOOD,
        "messages": [turn("user", "Who?"), turn("assistant", "A cat.", name=None)],
    },
    "parts of a table": {
        **GOOD,
        "prompt": [
            turn("user", [{"type": "text", "text": "Who?", "video": None, "image": None, "fps": 0}])
        ],
    },
    "one video named twice": {
        **GOOD,
        "prompt": [turn("user", [{"type": "video", "video": "a.mp4"}, {"text": "Who?"}])],
        "videos": [{"bytes": None, "path": "a.mp4"}],
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


@pytest.mark.parametrize("suffix", ["json", "csv", "flag"])
@pytest.mark.parametrize("name", ["instruction", "Instruction"])
def test_input_follows_the_instruction(tmp_path, suffix, name):
    if suffix == "json" and name != "instruction":
        pytest.skip("objects without --column have the usual names")
    record = {k: v for k, v in GOOD.items() if k != "prompt"} | {name: "Who?"}
    record["input" if name == "instruction" else "Input"] = "The red one."
    path = tmp_path / ("p.csv" if suffix == "csv" else "p.json")
    if suffix == "csv":
        write_csv(path, [record])
    else:
        path.write_text(json.dumps([record]))
    ((_, question, *_),) = read(path, **({"prompt": name} if suffix == "flag" else {}))
    assert question == "Who?\nThe red one."


SYSTEM, FIRST, SAID = turn("system", "Be brief."), turn("user", "Who?"), turn("assistant", "A man.")
NEXT, CHOSEN, REJECTED = (
    turn("user", "Where?"),
    turn("assistant", "Here."),
    turn("assistant", "No."),
)
SHAREGPT = {
    "video": "a.mp4",
    "system": "Be brief.",
    "conversations": [
        {"from": "human", "value": "<video>\nWho?"},
        {"from": "gpt", "value": "A man."},
        {"from": "human", "value": "Where?"},
    ],
    "chosen": {"from": "gpt", "value": "Here."},
    "rejected": {"from": "gpt", "value": "No."},
}
CONVERSATIONS = {
    "sharegpt": SHAREGPT,
    "sharegpt of openai": {
        "videos": ["a.mp4"],
        "messages": [SYSTEM, FIRST, SAID, NEXT],
        "chosen": CHOSEN,
        "rejected": REJECTED,
    },
    "tools that are none, a URL of a file, a developer": {
        "messages": [turn("developer", "Be brief."), FIRST, SAID, NEXT],
        "chosen": CHOSEN,
        "rejected": REJECTED,
        "tools": "[]",
        "videos": ["file:///videos/a.mp4"],
    },
    "swift without messages": {
        "query": "Where?",
        "response": "Here.",
        "rejected_response": "No.",
        "system": "Be brief.",
        "history": [["Who?", "A man."]],
        "videos": ["a.mp4"],
    },
    "an answer already": {
        **SHAREGPT,
        "conversations": [*SHAREGPT["conversations"], {"from": "gpt", "value": "There."}],
    },
    "swift response": {
        "messages": [SYSTEM, turn("user", "<video>Who?"), SAID, NEXT, CHOSEN | {"loss": True}],
        "rejected_response": "No.",
        "videos": ["a.mp4"],
    },
    "swift response of messages": {
        "messages": [SYSTEM, turn("user", "<video>Who?"), SAID | {"loss": False}, NEXT, CHOSEN],
        "rejected_response": [REJECTED],
        "videos": ["a.mp4"],
    },
    "weights of OpenAI": {
        "video": "a.mp4",
        "messages": [
            *(SYSTEM, FIRST, SAID | {"weight": 0}, NEXT),
            CHOSEN | {"weight": 1, "loss_scale": 1.0},
        ],
        "rejected_messages": [SYSTEM, FIRST, SAID | {"loss_scale": 2.0}, NEXT, REJECTED],
    },
    "swift messages": {
        "messages": [SYSTEM, FIRST, SAID, NEXT, CHOSEN],
        "rejected_messages": [SYSTEM, FIRST, SAID, NEXT, REJECTED],
        "videos": ["a.mp4"],
        "rejected_videos": ["a.mp4"],
    },
    "trl": {
        "video": "a.mp4",
        "prompt": [SYSTEM, FIRST, SAID, NEXT],
        "chosen": [CHOSEN],
        "rejected": [REJECTED],
    },
    "trl, turns in the answers": {
        "videos": ["a.mp4"],
        "prompt": [SYSTEM, turn("user", [{"type": "video"}, {"type": "text", "text": "Who?"}])],
        "chosen": [SAID, NEXT, CHOSEN],
        "rejected": [SAID, NEXT, REJECTED],
    },
    "trl implicit": {
        "video": "a.mp4",
        "chosen": [SYSTEM, FIRST, SAID, NEXT, CHOSEN],
        "rejected": [SYSTEM, FIRST, SAID, NEXT, REJECTED],
    },
    "trl, and the prompt as a text": {
        "video": "a.mp4",
        "prompt": "Where?",
        "chosen": [SYSTEM, FIRST, SAID, NEXT, CHOSEN],
        "rejected": [SYSTEM, FIRST, SAID, NEXT, REJECTED],
    },
    "alpaca": {
        **GOOD,
        "prompt": "Where?",
        "system": "Be brief.",
        "history": [["Who?", "A man."]],
        "chosen": "Here.",
        "rejected": "No.",
    },
}


@pytest.mark.parametrize("shape", CONVERSATIONS)
@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_conversations_are_kept_whole(tmp_path, shape, suffix):
    path = tmp_path / f"p.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps([CONVERSATIONS[shape]]))
    else:
        if shape == "trl, turns in the answers":
            pytest.skip("a column of a table holds texts or lists of parts, not both")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([CONVERSATIONS[shape]]), path)
    ((pair,), rejections) = read_pairs(path, videos=Path("/videos"))
    assert not rejections
    assert pair.history == (
        Message("system", "Be brief."),
        Message("user", "<video>\nWho?"),  # the first turn, where no other is named
        Message("assistant", "A man."),
    )
    assert (pair.video, pair.question, pair.answers) == ("a.mp4", "Where?", ("Here.", "No."))
    assert pair.kind == "other" and not pair.rejected_video


def test_columns_by_flag_beside_conversations(tmp_path):
    record = CONVERSATIONS["swift messages"] | {"clip": "a.mp4"}
    del record["videos"], record["rejected_videos"]
    (tmp_path / "p.json").write_text(json.dumps([record]))
    assert [
        pair.video for pair in read_pairs(tmp_path / "p.json", columns={"video": "clip"})[0]
    ] == ["a.mp4"]
    with pytest.raises(InputError, match="no column 'film'; it has messages"):
        read_pairs(tmp_path / "p.json", columns={"video": "film"})


def test_a_video_in_a_later_turn_stays_there(tmp_path):
    path = tmp_path / "p.json"
    messages = [FIRST, SAID, turn("user", "<video> Where?"), CHOSEN]
    record = {"messages": messages, "rejected_response": "No.", "video": "a.mp4"}
    path.write_text(json.dumps([record]))
    ((pair,), _) = read_pairs(path)
    assert pair.history == (Message("user", "Who?"), Message("assistant", "A man."))
    assert pair.question == "Where?"


@pytest.mark.parametrize("suffix", ["json", "parquet"])
@pytest.mark.parametrize(
    "rejected",
    # Alone it is enough, as for ms-swift: the same answer about another video.
    [{}, {"rejected_response": "Here."}, {"rejected_messages": [FIRST, CHOSEN]}],
)
def test_two_videos_of_swift(tmp_path, rejected, suffix):
    path = tmp_path / f"p.{suffix}"
    videos = {"videos": ["a.mp4"], "rejected_videos": ["b.mp4"]}
    record = {"messages": [FIRST, CHOSEN], **videos, **rejected}
    if suffix == "json":
        path.write_text(json.dumps([record]))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    ((pair,), _) = read_pairs(path)
    assert (pair.kind, pair.videos) == ("video", ("a.mp4", "b.mp4"))
    assert pair.answers == ("Here.", "Here.")


def test_logged_fields_of_messages_are_named(tmp_path, capsys):
    logged = {"name": "anna", "id": "msg_1", "timestamp": 1e9, "usage": {"tokens": 3}}
    record = GOOD | {"chosen": [turn("assistant", "A cat.", **logged)]}
    (tmp_path / "p.json").write_text(json.dumps([record]))
    assert read(tmp_path / "p.json") == [tuple(GOOD.values())]
    told = capsys.readouterr().err
    for name in logged:
        assert f"note: {name!r} of messages is left out" in told


@pytest.mark.parametrize("part", [{"video_url": {"url": "a.mp4"}}, {"video_url": "a.mp4"}])
def test_parts_of_chat_requests(tmp_path, part):
    cached = {"cache_control": {"type": "ephemeral"}}
    content = [{"type": "video_url", **part}, {"type": "text", "text": "Who?", **cached}]
    record = {k: v for k, v in GOOD.items() if k != "video"} | {"prompt": [turn("user", content)]}
    (tmp_path / "p.json").write_text(json.dumps([record]))
    assert read(tmp_path / "p.json") == [tuple(GOOD.values())]


SWIFT = CONVERSATIONS["swift response"]
VIDEO = {"type": "video", "video": "a.mp4"}


def asked(part, **more):
    prompt = [turn("user", [part, {"type": "text", "text": "Where?"}])]
    return {"prompt": prompt, "chosen": "Here.", "rejected": "No.", **more}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (SWIFT | {"tools": "[{}]"}, "has tools, which no prompt template here can hold"),
        (SWIFT | {"audios": ["a.wav"]}, "has audios"),
        (SWIFT | {"videos": ["a.mp4", "b.mp4"]}, "2 videos, one is needed"),
        (SWIFT | {"videos": [], "rejected_images": ["a.png"]}, "rejected_images; both answers"),
        (SWIFT | {"rejected_messages": [CHOSEN]}, "one of rejected_response and rejected_messages"),
        (SWIFT | {"chosen": "Here."}, "has messages and chosen, which name the same texts"),
        (SWIFT | {"messages": []}, "messages must be a list of messages"),
        (SWIFT | {"system": "Be long."}, "has a system text and another one in its messages"),
        (SWIFT | {"messages": [SAID, CHOSEN]}, "last message before an answer must be the user's"),
        (SWIFT | {"messages": [FIRST, SYSTEM, NEXT, SAID]}, "a system message must come first"),
        (SWIFT | {"messages": [FIRST, NEXT]}, "chosen must end with a message of the assistant"),
        (
            SWIFT | {"messages": [FIRST, turn("tool", "{}"), NEXT, CHOSEN]},
            "chosen has a message of 'tool', which no template here can hold",
        ),
        (
            CONVERSATIONS["trl implicit"] | {"rejected": [FIRST, SAID, NEXT, REJECTED]},
            "chosen and rejected follow different messages",
        ),
        (
            CONVERSATIONS["trl, and the prompt as a text"] | {"prompt": "Why?"},
            "chosen does not repeat the prompt that stands beside it",
        ),
        (SHAREGPT | {"prompt": "Why?"}, "conversations does not end with the prompt"),
        (
            SHAREGPT | {"chosen": [turn("assistant", [{"type": "audio"}])]},
            "chosen has a part of type 'audio'",
        ),
        (asked({"type": "image", "image": "x.png"}, video="a.mp4"), "has images; only pairs on"),
        (asked({"type": "image", "image": "x.png"}, images=["y.png"]), "names other images"),
        (asked(VIDEO, video="b.mp4"), "2 videos, one is needed: 'a.mp4', 'b.mp4'"),
        (asked(VIDEO, videos=["b.mp4"]), "2 videos, one is needed"),
        (asked(VIDEO | {"fps": 2}), "prompt has a part of type 'video' with 'fps'"),
        (asked(VIDEO | {"video_start": 1.5}), "with 'video_start', which no template here"),
        (asked({"type": "text", "text": "Hm", "video": "a.mp4"}), "of type 'text' with 'video'"),
        (
            asked(VIDEO) | {"chosen": [turn("assistant", [VIDEO])]},
            "chosen has a visual in a message of 'assistant'",
        ),
        (
            asked(VIDEO) | {"chosen": [turn("assistant", "Here.", reasoning_content="So.")]},
            "chosen has a message with 'reasoning_content'",
        ),
        (
            SWIFT | {"messages": [FIRST, turn("assistant", None, tool_calls=[{}]), NEXT, CHOSEN]},
            "chosen has a message with 'tool_calls', which no template here can hold",
        ),
        (SWIFT | {"objects": {"bbox": [[1, 2, 3, 4]]}}, "has objects"),
        (SWIFT | {"rejected_response": None}, "have rejected_response, rejected_messages or"),
        (
            SWIFT | {"messages": [FIRST, SAID | {"loss": True}, NEXT, CHOSEN]},
            "has an earlier answer with loss=True; the loss is on the last answer alone",
        ),
        (SHAREGPT | {"chosen": turn("assistant", "Here.", weight=0)}, "an answer with weight=0"),
        (SHAREGPT | {"rejected": turn("assistant", "No.", loss_scale=2)}, "with loss_scale=2"),
        (SHAREGPT | {"rejected": turn("assistant", "No.", train=False)}, "with train=False"),
        (
            asked({"type": "video_url", "video_url": {"url": "a.mp4", "fps": 2}}),
            "prompt has video_url with 'fps'",
        ),
        (asked(VIDEO, history=[turn("user", "Who?", value="Why?"), SAID]), "message with 'value'"),
        (GOOD | {"input": "The red one."}, "has prompt and input, which both say what is asked"),
        (GOOD | {"instruction": "Why?"}, "has prompt and instruction"),
        (GOOD | {"query": "Why?"}, "has prompt and query"),
        (GOOD | {"messages": [FIRST, SAID]}, "has messages other than those that both answers"),
        (asked(VIDEO, question="Why?"), "both prompt and question"),
    ],
)
def test_what_cannot_be_kept_whole_is_refused(tmp_path, record, reason):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(record) + "\n")
    pairs, (rejection,) = read_pairs(path)
    assert not pairs and reason in rejection.reason


@pytest.mark.parametrize("saved", ["parquet", "hub", "converted", "disk", "dict"])
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
    elif saved == "converted":
        path = tmp_path / "repo"
        for split, part in (("train", table), ("test", table[:1])):
            (path / "default" / split).mkdir(parents=True)
            pyarrow.parquet.write_table(part, path / "default" / split / "0000.parquet")
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
            st.sampled_from(
                ["role", "content", "from", "value", "type", "video", "text", "loss", "name"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = [
    *("video", "videos", "prompt", "question", "conversations", "chosen", "rejected", "answer"),
    *("messages", "rejected_response", "rejected_messages", "rejected_videos", "system", "history"),
    *("instruction", "input", "image", "images", "objects"),
]


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
