"""Read the JSON files that MLVU, TempCompass and TVBench first published, as rows of their tables.

| benchmark | rows | videos |
|---|---|---|
| MLVU dev | `json/1_plotQA.json` to `json/7_topic_reasoning.json` | `video/1_plotQA/NAME` … |
| MLVU test | `test-ground-truth/test_mcq_gt.json` | `video/NAME` |
| TempCompass | `questions/multi-choice.json` | `videos/ID.mp4` |
| TVBench | `json/action_antonym.json` and so on, one for each task | `video/TASK/NAME` |

MLVU's files have a list of options and the gold text; its tables have the options in the question
and the gold letter. Its two tasks with free-form answers, `8_…` and `9_…`, are skipped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_json

Rows = list[dict[str, Any]]


def mlvu_dev(folder: Path) -> Rows:
    """Return the rows of a folder in MLVU's dev layout; none if it has another layout.

    Raises:
        InputError: A file or row is not as published.
    """
    rows = []
    for file in sorted(folder.glob("json/[1-7]_*.json")):
        task = file.stem.partition("_")[2]
        for where, row in _listed(file):
            row = _with_letter(where, row) | {"task_type": task}
            rows.append(row | {"video_name": f"video/{file.stem}/{row['video_name']}"})
    return rows


def mlvu_test(folder: Path) -> Rows:
    """Return the rows of a folder in MLVU's test layout, as `mlvu_dev`."""
    file = folder / "test-ground-truth/test_mcq_gt.json"
    rows = []
    for where, row in _listed(file) if file.is_file() else []:
        row = _with_letter(where, row)
        rows.append(row | {"video_name": f"video/{row['video_name']}"})
    return rows


def tempcompass(folder: Path) -> Rows:
    """Return the rows of a folder in TempCompass' layout, as `mlvu_dev`."""
    file = folder / "questions/multi-choice.json"
    if not file.is_file():
        return []
    videos, rows = read_json(file), []
    try:
        for video, dims in videos.items():
            for dim, asked in dims.items():
                rows += [
                    {
                        "video_id": video,
                        "dim": dim,
                        "question": q["question"],
                        "answer": q["answer"],
                    }
                    for q in asked
                ]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not video, aspect, list of questions: {error}") from error
    return rows


def tvbench(folder: Path) -> Rows:
    """Return the rows of a folder in TVBench's layout, as `mlvu_dev`."""
    files = sorted(folder.glob("json/*.json"))
    return [row | {"task": file.stem} for file in files for _, row in _listed(file)]


ORIGINALS: dict[str, Callable[[Path], Rows]] = {
    "mlvu_dev": mlvu_dev,
    "mlvu_test": mlvu_test,
    "tempcompass_multi_choice": tempcompass,
    "tvbench": tvbench,
}


def _listed(file: Path) -> list[tuple[str, dict]]:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: not a list of rows")
    return [(f"{file}: row {i}", row) for i, row in enumerate(rows)]


def _with_letter(where: str, row: dict) -> dict:
    try:
        candidates = [str(text) for text in row["candidates"]]
        letter = chr(ord("A") + candidates.index(str(row["answer"])))
        listed = [f"({chr(ord('A') + i)}) {text}" for i, text in enumerate(candidates)]
        question = "\n".join((row["question"], *listed))
        known = {"video_name": row["video"], "question": question, "answer": letter}
    except KeyError as error:
        raise InputError(f"{where}: no {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the answer is none of the candidates") from error
    kept = {name: row.get(name) for name in ("duration", "question_id")}
    return known | kept | {"candidates": candidates, "task_type": row.get("question_type")}
