"""Small benchmark folders in the published layouts, in the places where lmms-eval looks."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet

from tests.evaluation.agreement import make_docs

FOLDERS = {
    "videomme": "videomme",
    "videomme_w_subtitle": "videomme",
    "videomme_long_w_subtitle": "videomme",
    "mlvu_dev": "mlvu",
    "mlvu_test": "mlvu_test",
    "longvideobench_val_v": "datasets/longvideobench",
    "longvideobench_val_i": "datasets/longvideobench",
    "lvbench": "lvbench",
    "tempcompass_multi_choice": "tempcompass",
    "tvbench": "tvbench",
    "temporalbench_short_qa": "temporalbench",
    "videomme_v2": "videomme_v2",
    "videomme_v2_w_subtitle": "videomme_v2",
    "videomme_v2_reasoning": "videomme_v2",
}
OPTIONS = ["walk", "run", "sit", "lie"]


def make_folders(root: Path, videos: list[Path], durations: list[float], rows: int = 7) -> None:
    """Make all benchmarks with `rows` questions each, three per video.

    Args:
        root: Becomes HF_HOME.
        videos: MP4 files, `-(-rows // 3)` of them.
        durations: Of the videos, seconds.
    """
    for benchmark, name in FOLDERS.items():
        if (folder := root / name).exists():
            continue
        folder.mkdir(parents=True)
        docs = make_docs(benchmark, 7, rows)
        for i, doc in enumerate(docs):
            _complete(benchmark, folder, doc, i, videos[i // 3], durations[i // 3])
        table = pyarrow.Table.from_pylist(docs)
        half = max(1, rows // 2)
        places = {"videomme": "videomme", "tempcompass": "multi-choice", "tvbench": "action_count"}
        place = places.get(name, "data")
        splits = {"datasets/longvideobench": "validation", "lvbench": "train", "tvbench": "train"}
        split = (splits | {"temporalbench": "test_short_qa"}).get(name, "test")
        (folder / place).mkdir(exist_ok=True)
        for part, rest in enumerate((table.slice(0, half), table.slice(half))):
            file = folder / place / f"{split}-{part:05}-of-00002.parquet"
            pyarrow.parquet.write_table(rest, file)


def _copy(video: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(video, target)


def _complete(benchmark, folder, doc, i, video, duration) -> None:
    """Add the columns that prompts read, and the files."""
    stem = f"v{i // 3}"
    listed = "\n".join(f"({x}) {text}" for x, text in zip("ABCD", OPTIONS, strict=True))
    if benchmark.startswith("videomme_v2"):
        doc |= {"video_id": stem, "question": f"What happens {i}?"}
        _copy(video, folder / f"{stem}.mp4")
        if i // 3 != 1:
            (folder / "subtitle").mkdir(exist_ok=True)
            spoken = [{"text": word, "start_time": 0.0, "end_time": 1.0} for word in ("so", "a b")]
            lines = "\n\n".join(map(json.dumps, spoken))
            (folder / f"subtitle/{stem}.jsonl").write_text(lines)
    elif benchmark == "tvbench":
        doc |= {"video": f"{stem}.mp4", "question": f" How often {i}? "}
        doc["task"] = "action_count"
        _copy(video, folder / ("action_antonym", "video/action_count")[i // 3 % 2] / f"{stem}.mp4")
    elif benchmark.startswith("temporalbench"):
        doc |= {"video_name": f"short_video/{stem}.mp4", "question": f"Which {i}?\nA. x\nB. y\n"}
        _copy(video, folder / "short_video" / f"{stem}.mp4")
    elif benchmark.startswith("videomme"):
        doc |= {"videoID": stem, "question": f"What happens {i}?"}
        doc["options"] = [f"{x}. {text}." for x, text in zip("ABCD", OPTIONS, strict=True)]
        doc["duration"] = ["long", "short"][i // 3 % 2]
        _copy(video, folder / "data" / f"{stem}.mp4")
        if i // 3 != 1:
            write_srt(folder / "subtitle" / f"{stem}.srt", duration, 40)
    elif benchmark.startswith("mlvu"):
        doc |= {"video_name": f"{stem}.mp4", "duration": duration}
        doc["question"] = f"What happens {i}?\n{listed}"
        _copy(video, folder / f"{stem}.mp4")
    elif benchmark.startswith("longvideobench"):
        doc |= {"video_path": f"{stem}.mp4", "subtitle_path": f"{stem}.json", "duration": duration}
        doc |= {"question": f"What happens {i}?", "starting_timestamp_for_subtitles": i // 3 * 1.5}
        _copy(video, folder / "videos" / f"{stem}.mp4")
        write_subtitles(folder / "subtitles" / f"{stem}.json", duration, old=i // 3 == 1)
    elif benchmark == "lvbench":
        doc |= {"video_path": f"{stem}.mp4", "question": f"What happens {i}?", "options": OPTIONS}
        doc["question_type"] = ["summarization", "reasoning"][: 1 + i % 2]
        _copy(video, folder / f"{stem}.mp4")
    else:
        doc["video_id"] = stem
        _copy(video, folder / "videos" / f"{stem}.mp4")


def write_srt(path: Path, duration: float, count: int) -> None:
    """Write overlapping lines in Video-MME's font tag; some without it, repeated or of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for i in range(count):
        start, end = duration * i / count, duration * (i + 1.5) / count
        text = f'<font color="white" size=".72c">line {i}</font>'
        if i % 10 == 3:
            text = f"plain {i}"
        if i % 10 == 5:
            text = f'{text}\n<font color="white" size=".72c">more {i}</font>'
        blocks.append(f"{i + 1}\n{_clock(start)} --> {_clock(end)}\n{text}")
        if i % 10 == 7:
            blocks.append(blocks[-1].replace("line", "again"))
    path.write_text("\n\n".join(blocks) + "\n\n")


def write_subtitles(path: Path, duration: float, old: bool) -> None:
    """Write LongVideoBench's list in its new or old format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(8):
        start, end = duration * i / 8, duration * i / 8 + (0.4, 1.7)[i % 2]
        if old:
            lines.append({"start": _clock(start, "."), "end": _clock(end, "."), "line": f"l{i}"})
        else:
            times = [start, {3: None, 5: 2}.get(i, end)]  # lmms-eval reads neither as a time
            lines.append({"timestamp": times, "text": f"l{i}"})
    path.write_text(json.dumps(lines))


def _clock(seconds: float, point: str = ",") -> str:
    whole = int(seconds)
    rest = round((seconds - whole) * 1000) % 1000
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{rest:03}"
