"""Prompts equal those of the published lmms-eval; errors name what is missing or broken."""

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.evaluation.agreement import Oracle
from tests.evaluation.folders import FOLDERS, write_srt
from tests.video.clips import import_decord
from tpo_jax import families
from tpo_jax.data.processor import Processor
from tpo_jax.errors import InputError
from tpo_jax.evaluation import runner
from tpo_jax.evaluation.benchmarks import BENCHMARKS, ask, read_rows, spaced_frames
from tpo_jax.evaluation.journal import AnswerJournal
from tpo_jax.evaluation.lmms_models import LMMS_MODELS
from tpo_jax.evaluation.rescoring import rescore
from tpo_jax.evaluation.scorers import Scorer
from tpo_jax.evaluation.subtitles import interleave, read_srt, shown_lines
from tpo_jax.evaluation.verdicts import ERAS, TODAY
from tpo_jax.video.decode import opened
from tpo_jax.worlds.tokenizer import train_tokenizer


@pytest.mark.parametrize("era", ERAS)
def test_prompts_equal_lmms_eval(era, benchmark_folders) -> None:
    old = benchmark_folders / "longvideobench"  # where 0.3.0 looks
    old.is_symlink() or old.symlink_to(benchmark_folders / FOLDERS["longvideobench_val_v"])
    with Oracle(era, HF_HOME=str(benchmark_folders)) as oracle:
        for benchmark, folder in FOLDERS.items():
            if era != "lmms_eval_0.7" and benchmark == "videomme_long_w_subtitle":
                continue  # added after 0.3.5
            if era == "paper_era" and benchmark == "mlvu_test":
                continue  # added after 0.3.0
            if era != "lmms_eval_0.7" and benchmark.startswith(("tvbench", "videomme_v2")):
                continue  # the same in all eras
            questions, problems = ask(benchmark_folders / folder, benchmark, era)
            assert not problems
            assert len(questions) == (4 if "long_" in benchmark else 7)
            docs = [question.doc for question in questions]
            theirs = oracle(benchmark, "prompt", docs=docs)
            assert [question.prompt for question in questions] == theirs
            for model in LMMS_MODELS if era == TODAY else ():
                own = ask(benchmark_folders / folder, benchmark, lmms_model=model)[0]
                theirs = oracle(benchmark, "prompt", docs=docs, model=model)
                assert [question.prompt for question in own] == theirs, model
            videos = [Path(name).resolve() for name in oracle(benchmark, "video", docs=docs)]
            assert [question.video for question in questions] == videos


def test_subtitle_lines_are_not_in_order_of_time(benchmark_folders, tmp_path) -> None:
    video = benchmark_folders / "videomme/data/v1.mp4"
    write_srt(tmp_path / "a.srt", 40, 400)
    lines = shown_lines(tmp_path / "a.srt", video)
    numbers = [int(line.split()[1]) for line in lines]
    assert 20 < len(numbers) <= 64
    assert numbers != sorted(numbers)
    assert shown_lines(tmp_path / "a.srt", video.with_suffix(".mkv")) == []


def test_rows_in_other_formats(benchmark_folders, tmp_path) -> None:
    rows = read_rows(benchmark_folders / "mlvu", "mlvu_dev")
    assert len(rows) == 7
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_rows(tmp_path, "mlvu_dev") == rows
    rows = read_rows(benchmark_folders / FOLDERS["longvideobench_val_v"], "longvideobench_val_v")
    listed = []
    for row in rows:
        options = [row[f"option{i}"] for i in range(5)]
        rest = {k: v for k, v in row.items() if not k.startswith("option")}
        listed.append(rest | {"candidates": [text for text in options if text != "N/A"]})
    (tmp_path / "lvb_val.json").write_text(json.dumps(listed))
    read = read_rows(tmp_path, "longvideobench_val_v")
    assert [{k: v for k, v in row.items() if k != "candidates"} for row in read] == rows


def test_originally_published_files(benchmark_folders, tmp_path) -> None:
    """They give the same questions and scores as the tables."""
    for benchmark in ("mlvu_dev", "mlvu_test", "tempcompass_multi_choice"):
        rows = read_rows(benchmark_folders / FOLDERS[benchmark], benchmark)
        folder = tmp_path / benchmark
        if benchmark == "tempcompass_multi_choice":
            nested = defaultdict(lambda: defaultdict(list))
            for row in rows:
                asked = {"question": row["question"], "answer": row["answer"]}
                nested[row["video_id"]][row["dim"]].append(asked)
                write_json(folder / f"videos/{row['video_id']}.mp4", "")
            write_json(folder / "questions/multi-choice.json", nested)
        else:
            files = defaultdict(list)
            for row in rows:
                question, *options = row["question"].split("\n")
                options = [option.split(") ")[1] for option in options]
                row["answer"] = "ABCD"["ABCDEF".index(row["answer"]) % 4]
                right = options["ABCD".index(row["answer"])]
                dev = benchmark == "mlvu_dev"
                place = f"json/3_{row['task_type']}" if dev else "test-ground-truth/test_mcq_gt"
                below = f"video/3_{row['task_type']}" if dev else "video"
                write_json(folder / below / row["video_name"], "")
                files[place].append(
                    {
                        "video": row["video_name"],
                        "question": question,
                        "candidates": options,
                        "answer": right,
                        "question_type": row["task_type"],
                    }
                )
            for place, listed in files.items():
                write_json(folder / f"{place}.json", listed)
            write_json(folder / "json/9_summary.json", [{"video": "a.mp4"}])
        questions, problems = ask(folder, benchmark)
        assert not problems
        names = ("question", "answer", *(("dim",) if "temp" in benchmark else ("task_type",)))
        read = [tuple(question.doc[name] for name in names) for question in questions]
        assert sorted(read) == sorted(tuple(row[name] for name in names) for row in rows)
        scorer, docs = Scorer(benchmark), [question.doc for question in questions]
        assert scorer.summary(docs, [scorer.judge(doc, "A") for doc in docs])["questions"] == 7


def test_tasks_of_tvbench(benchmark_folders, tmp_path) -> None:
    """Their folders are read in order, and so are the files that were published first."""
    rows = read_rows(benchmark_folders / "tvbench", "tvbench")
    assert {row["task"] for row in rows} == {"action_count"}
    for task in ("object_count", "action_antonym"):
        for folder, name in ((tmp_path / "tables" / task, "train"), (tmp_path / "json", task)):
            folder.mkdir(parents=True, exist_ok=True)
            plain = [{k: v for k, v in row.items() if k != "task"} for row in rows]
            write_json(folder / f"{name}.json", plain)
    expected = [row | {"task": task} for task in ("action_antonym", "object_count") for row in rows]
    assert read_rows(tmp_path / "tables", "tvbench") == expected
    assert read_rows(tmp_path, "tvbench") == expected


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("json/1_plotQA.json", "{", "cannot be read"),
        ("json/1_plotQA.json", "{}", "not a list of rows"),
        ("json/1_plotQA.json", "[" * 100_000, "cannot be read"),
        ("json/2_needle.json", '[{"video": "a"}]', "row 0: no 'candidates'"),
        (
            "json/4_count.json",
            '[{"video": "a", "question": "?", "candidates": ["1", "2"], "answer": "3"}]',
            "row 0: the answer is none",
        ),
        ("questions/multi-choice.json", '{"1": {"action": [{"question": "?"}]}}', "'answer'"),
        ("questions/multi-choice.json", "[]", "not video, aspect"),
    ],
)
def test_broken_originally_published_files(name, content, message, tmp_path) -> None:
    write_json(tmp_path / name, "")
    (tmp_path / name).write_text(content)
    benchmark = "mlvu_dev" if name.startswith("json") else "tempcompass_multi_choice"
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        read_rows(tmp_path, benchmark)


def test_missing_and_broken_files_are_named(benchmark_folders, tmp_path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_rows(tmp_path / "nowhere", "videomme")
    with pytest.raises(InputError, match=r"no rows of videomme \(videomme/test-\*.parquet"):
        read_rows(tmp_path, "videomme")
    folder = tmp_path / "videomme"
    shutil.copytree(benchmark_folders / "videomme", folder)
    (folder / "data/v1.mp4").unlink()
    questions, problems = ask(folder, "videomme")
    assert [q.doc_id for q in questions] == [0, 1, 2, 6]
    assert [p.split(":")[0] for p in problems] == ["row 3", "row 4", "row 5"]
    assert all("v1.mp4: no such video" in problem for problem in problems)
    srt = folder / "subtitle/v2.srt"
    srt.write_text(srt.read_text().replace("00:00:01,000", "1.0 s", 1))
    _, problems = ask(folder, "videomme_w_subtitle")
    assert len(problems) == 4 and "v2.srt:" in problems[-1]
    assert problems[-1].endswith("is not a time range H:M:S,ms --> H:M:S,ms")
    (folder / "videomme/test-00000-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="test-00000-of-00002.parquet: cannot be read"):
        read_rows(folder, "videomme")
    shutil.rmtree(folder / "videomme")
    rows = [{"videoID": "v0", "question": "What?"}]
    (folder / "videomme").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "videomme/test-00000-of-00001.parquet"
    )
    assert ask(folder, "videomme")[1] == [
        "row 0: a column is missing or of the wrong type: 'options'"
    ]


def lvb(folder: Path, **changes) -> Path:
    """Make a folder with one row of LongVideoBench and the files that it names."""
    row = {"id": "a_0", "video_path": "a.mp4", "subtitle_path": "a.json", "duration": 20.0}
    row |= {"question": "What?", "correct_choice": 1, "candidates": ["a", "b"]}
    row |= {"starting_timestamp_for_subtitles": 0, "duration_group": 15, "question_category": "S2A"}
    write_json(folder / "lvb_val.json", [row | changes])
    write_json(folder / "subtitles/a.json", [])
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").touch()
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": math.nan}, "NaN"),
        ({"duration": 10**400}, "too large"),
        ({"candidates": 5}, "'option0'"),
        ({"question": "half \ud800"}, "no valid Unicode"),
        ({"question": "<|im_end|>"}, "only the template"),
        ({"correct_choice": "b"}, "'correct_choice'"),
        ({"correct_choice": None}, "'correct_choice'"),
    ],
)
def test_rows_are_checked_before_anything_is_asked(changes, message, tmp_path) -> None:
    assert not ask(lvb(tmp_path / "good"), "longvideobench_val_i")[1]
    questions, problems = ask(lvb(tmp_path / "bad", **changes), "longvideobench_val_i")
    assert not questions and problems[0].startswith("row 0: ") and message in problems[0]


def test_rows_that_no_scorer_accepts_are_named(tmp_path) -> None:
    row = {"video_name": "a.mp4", "question": "?", "answer": "A", "task_type": "plotQA"}
    (tmp_path / "a.mp4").touch()
    rows = [row, row | {"task_type": "juggling"}, row | {"question": 3}]
    write_json(tmp_path / "test.json", rows)
    questions, problems = ask(tmp_path, "mlvu_test")
    assert len(questions) == 1
    assert "row 1: task_type 'juggling' is none of mlvu_test" in problems[0]
    assert problems[1].startswith("row 2: ")


def test_a_folder_without_any_subtitles_is_an_error(benchmark_folders, tmp_path) -> None:
    shutil.copytree(benchmark_folders / "videomme", tmp_path / "videomme")
    shutil.rmtree(tmp_path / "videomme/subtitle")
    assert not ask(tmp_path / "videomme", "videomme")[1]
    with pytest.raises(InputError, match="subtitle: no subtitles there"):
        ask(tmp_path / "videomme", "videomme_w_subtitle")


def test_guesses_are_among_stored_candidates(tmp_path) -> None:
    [question], _ = ask(lvb(tmp_path / "data"), "longvideobench_val_v")
    as_published = json.loads((tmp_path / "data/lvb_val.json").read_text())[0]
    stored = tmp_path / "stored.jsonl"
    extracted = []
    for doc in (question.doc, as_published):
        stored.write_text((json.dumps({"doc": doc, "prediction": "none"}) + "\n") * 50)
        rescore(Scorer("longvideobench_val_v"), stored, tmp_path / "out.jsonl")
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert all(json.loads(line)["doc"] == doc for line in lines)
        extracted.append([json.loads(line)["extracted"] for line in lines])
    assert extracted[0] == extracted[1] and set(extracted[0]) == {"A", "B"}


def test_journals_without_or_of_another_owner_are_refused(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    for content, message in (
        ("\n\n", "does not say whose"),
        ('{"who": "me"}\n{"doc_id": [1], "input": "a", "answer": "b"}\n', "answers.jsonl:2: "),
        ('{"who": "you"}\n{"doc_', "results of another run"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            AnswerJournal(path, {"who": "me"})
        assert path.read_text() == content


@pytest.mark.parametrize(
    "times",
    [
        "00:00:01,000 -> 00:00:02,000",
        "00:00:01.000 --> 00:00:02.000",
        "00:01,000 --> 00:02,000",
        "a:b:c,d --> 00:00:02,000",
        f"{'9' * 400}:00:00,000 --> 00:00:02,000",
    ],
)
def test_srt_with_broken_times(times, tmp_path) -> None:
    path = tmp_path / "a.srt"
    path.write_text(f"1\n00:00:00,000 --> 00:00:01,000\nfirst\nmore\n\n2\n{times}\nsecond\n")
    with pytest.raises(InputError, match=r"a\.srt:7: "):
        read_srt(path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "3",
        '[{"timestamp": [1.0]}]',
        '[{"timestamp": [null, 2.0], "text": "a"}]',
        f'[{{"timestamp": [1{"0" * 400}, 2.0], "text": "a"}}]',
        f'[{{"start": "{"9" * 400}:0:0", "end": "0:0:1", "line": "a"}}]',
        '[{"start": "1", "end": "2", "line": "a"}]',
        '[{"text": "a"}]',
        '["timestamp"]',
    ],
)
def test_subtitle_lists_with_broken_times(content, tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"a\.json: "):
        interleave(path, 20.0, 0.0, 16)


@pytest.mark.parametrize("duration", [1.5, 12.0, 40.0, 41.5])
def test_frames_between_subtitles_equal_decord(duration, benchmark_folders) -> None:
    decord = import_decord()
    video = benchmark_folders / "videomme/data/v1.mp4"
    reader = decord.VideoReader(str(video))
    n = min(16, int(duration))
    step = int(int(duration * reader.get_avg_fps()) / n)
    indices = [min(step * i, len(reader) - 1) for i in range(n)]
    frames = np.stack([np.asarray(frame) for frame in spaced_frames(video, duration)])
    np.testing.assert_array_equal(frames, reader.get_batch(indices).asnumpy())


def test_num_frames_of_the_paper() -> None:
    longva = {name: spec.num_frames for name, spec in BENCHMARKS.items()}
    config = families.preset("llava_video_7b")
    own = families.of(config).benchmark_frames(config)
    llava_video = {name: own.get(name, frames) for name, frames in longva.items()}
    assert not families.of(config).benchmark_frames(families.preset("longva_7b"))
    assert longva["videomme"] == longva["mlvu_dev"] == longva["longvideobench_val_v"] == 128
    assert llava_video["mlvu_dev"] == llava_video["longvideobench_val_v"] == 128
    assert longva["videomme_w_subtitle"] == llava_video["videomme_w_subtitle"] == 96
    assert llava_video["videomme"] == 96


def test_a_model_is_asked_as_lmms_eval_asks_it(benchmark_folders) -> None:
    """The message before the question, and frames at rounded places."""
    asked = LMMS_MODELS["qwen3_vl"]
    tokenizer = train_tokenizer([asked.system, "Question: Which? Options: A B"], vocab_size=300)
    processor = Processor(families.preset("tiny_longva"), tokenizer)
    [question] = ask(benchmark_folders / "videomme", "videomme", limit=1, lmms_model="qwen3_vl")[0]
    [group] = runner.make_groups([question], processor)
    read = runner.make_reader(processor, 6, asked.rule, asked.system)
    frames, row = read(group)
    text = tokenizer.decode(row.prefix_ids[row.visual_index < 0].tolist())
    assert asked.system in text.replace("\u0120", " ")
    with opened(question.video) as video:
        rounded = np.linspace(0, video.info.num_frames - 1, 6).round().astype(int)
        np.testing.assert_array_equal(frames, processor.resize(video.select(lambda _: rounded)[1]))
