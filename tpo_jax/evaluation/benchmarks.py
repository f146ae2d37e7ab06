"""Find the rows, videos and subtitles of a benchmark and ask its questions as lmms-eval does.

The layouts are those of the published data sets with their archives extracted:

| benchmark | rows | videos | subtitles |
|---|---|---|---|
| Video-MME | `videomme/test-*.parquet` | `data/ID.mp4` | `subtitle/ID.srt` |
| MLVU dev, test | `data/test-*.parquet` | `NAME` | |
| LongVideoBench | `validation-*.parquet` or `lvb_val.json` | `videos/NAME` | `subtitles/NAME` |
| LVBench | `data/train-*.parquet` | `NAME` | |
| TempCompass | `multi-choice/test-*.parquet` | `videos/ID.mp4` | |
| TVBench | `TASK/train-*.parquet`, ten tasks | `NAME` or `video/TASK/NAME` | |
| TemporalBench | `data/test_short_qa-*.parquet` or `test_long_qa` | `NAME` | |
| Video-MME-v2 | `test.parquet` | `ID.mp4` | `subtitle/ID.jsonl` |

Rows may also be `.jsonl` or `.json`; if the table names no folder, they may be in any. The files
that MLVU, TempCompass and TVBench first published are read as well (`layouts.py`).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from tpo_jax.data.folders import find_video, video_at
from tpo_jax.data.prompts import check_text
from tpo_jax.errors import InputError
from tpo_jax.evaluation import layouts, prompts
from tpo_jax.evaluation.lmms_models import LMMS_MODELS
from tpo_jax.evaluation.scorers import Scorer
from tpo_jax.evaluation.verdicts import TODAY
from tpo_jax.families.template import IMAGE
from tpo_jax.io.files import read_json, read_lines
from tpo_jax.io.paths import check_folder
from tpo_jax.video.decode import Video, opened


class Question(NamedTuple):
    """One question of a benchmark.

    Attributes:
        doc_id: Index of its row in the benchmark.
        doc: The row.
        prompt: Text of the question.
        video: The file it is about, or its path in a store.
        pictures: Returns the images at the prompt's `<image>` places; None: the question is about
            the video as a whole.
    """

    doc_id: int
    doc: dict[str, Any]
    prompt: str
    video: Path | str
    pictures: Callable[[], list[Image.Image]] | None = None


class Benchmark(NamedTuple):
    """What a benchmark asks and how.

    Attributes:
        split: Of the rows; prefix of their files' names.
        subset: Folder of the rows, if the data set has several; `*`: all of them, and `task` names
            a row's.
        prompt: Maps row, folder and era to the text after the video.
        files: Maps a row to the names that its video may have; the first one found counts.
        target: Column of the gold answer.
        num_frames: In the paper's evaluation, unless the model's family sets another number.
        max_new_tokens: Longest answer. All decoding is greedy.
        keep: Whether a row belongs to the benchmark.
        subtitles: Pattern of its subtitles; there must be some.
    """

    split: str
    subset: str
    prompt: Callable[[dict, Path, str], str]
    files: Callable[[dict], Sequence[str]]
    target: str = "answer"
    num_frames: int = 128
    max_new_tokens: int = 16
    keep: Callable[[dict], bool] = lambda doc: True
    subtitles: str = ""

    @property
    def interleaved(self) -> bool:
        """Whether frames are images between subtitles, not one video before the text."""
        return self.prompt is prompts.longvideobench_interleaved


def read_rows(folder: Path, benchmark: str) -> list[dict[str, Any]]:
    """Return the rows of a benchmark, in the order of its published files.

    Raises:
        InputError: The folder does not exist or has no rows, or a file cannot be read.
    """
    spec = BENCHMARKS[benchmark]
    if not folder.is_dir():
        raise InputError(f"--data={folder}: no such folder; set it to the data of {benchmark}")
    # Other subsets beside it have files of the same names.
    places = [f"{spec.subset}/"] if spec.subset else ["", "data/", "*/"]
    names = [
        f"{spec.split}-*.parquet",
        *(f"{spec.split}.{x}" for x in ("parquet", "jsonl", "json")),
    ]
    if spec.split == "validation":
        names.append("lvb_val.json")
    for name in names:
        for place in places:
            if files := sorted(folder.glob(place + name)):
                rows = [
                    row | ({"task": file.parent.name} if spec.subset == "*" else {})
                    for file in files
                    for row in _read(file)
                ]
                return [row for row in map(complete, rows) if spec.keep(row)]
    if rows := layouts.ORIGINALS.get(benchmark, lambda folder: [])(folder):
        return rows
    raise InputError(f"--data={folder}: no rows of {benchmark} ({places[0]}{names[0]} or .jsonl)")


def _read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return [row for _, row in read_lines(file)]
    if file.suffix == ".parquet":
        try:
            return pyarrow.parquet.read_table(file).to_pylist()
        except (ValueError, pyarrow.ArrowException) as error:
            raise InputError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: not a list of rows")
    return rows


def complete(row: dict) -> dict:
    """Return a row of LongVideoBench's JSON (a list of candidates) with its tables' five columns of
    options; other rows as they are.
    """
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or "correct_choice" not in row or "option0" in row:
        return row
    return row | {f"option{i}": text for i, text in enumerate([*candidates, *["N/A"] * 5][:5])}


def ask(
    folder: Path,
    benchmark: str,
    era: str = TODAY,
    limit: int = 0,
    videos: Path | None = None,
    lmms_model: str = "",
) -> tuple[list[Question], list[str]]:
    """Return the questions of a benchmark, and one line for each row that cannot be asked.

    Args:
        folder: With the data.
        benchmark: One of `BENCHMARKS`.
        era: Of the prompts; MLVU's and LVBench's have changed.
        limit: Only the first so many rows; 0: all.
        videos: Folder with the videos in the same places, or a store of them; None: `folder`.
        lmms_model: One of `lmms_models.LMMS_MODELS`, whose prompts count; empty: the default ones.

    Raises:
        InputError: See `read_rows`.
    """
    if videos is not None:
        check_folder("--videos", videos)
    spec, scorer = BENCHMARKS[benchmark], Scorer(benchmark, era)
    if lmms_model:
        own = LMMS_MODELS[lmms_model].prompts
        spec = spec._replace(prompt=own.get(benchmark, spec.prompt))
    questions, problems = [], []
    if spec.subtitles and not any(folder.glob(spec.subtitles)):
        place = folder / spec.subtitles
        raise InputError(f"{place.parent}: no subtitles there ({place.name})")
    for doc_id, doc in enumerate(read_rows(folder, benchmark)[: limit or None]):
        try:
            video = find_video(videos or folder, spec.files(doc))
            prompt = spec.prompt(doc, folder, era)
            check_text(prompt.replace(IMAGE, "") if spec.interleaved else prompt)
            scorer.summary([doc], [scorer.judge(doc, "")])  # fail now, not after answering
            question = Question(doc_id, doc, prompt, video)
            if spec.interleaved:
                pictures = functools.partial(spaced_frames, video, doc["duration"])
                question = question._replace(pictures=pictures)
            questions.append(question)
        except InputError as error:
            problems.append(f"row {doc_id}: {error}")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            problems.append(f"row {doc_id}: a column is missing or of the wrong type: {error}")
    return questions, problems


def spaced_frames(
    video: Path, duration: float, num_frames: int = prompts.INTERLEAVED_FRAMES
) -> list[Image.Image]:
    """Return the frames between LongVideoBench's subtitles: one per whole second.

    Args:
        duration: As the row says, at least one second.
        num_frames: Most frames.

    Raises:
        VideoError: The video cannot be read.
    """

    def choose(opened: Video) -> np.ndarray:
        n = min(num_frames, int(duration))
        step = int(int(duration * opened.info.fps) / n)
        return np.minimum(step * np.arange(n), opened.info.num_frames - 1)

    with opened(video_at(video)) as file:
        return [Image.fromarray(frame) for frame in file.select(choose)[1]]


_SUBTITLED = Benchmark(
    *("test", "videomme", prompts.videomme_subtitled, prompts.videomme_files),
    num_frames=96,
    subtitles="subtitle/*.srt",
)
_V2 = Benchmark("test", "", prompts.videomme_v2, prompts.videomme_v2_files, max_new_tokens=64)
_TEMPORALBENCH = Benchmark(
    "test_short_qa", "", prompts.temporalbench, prompts.temporalbench_files, "GT"
)
_LONGVIDEOBENCH = Benchmark(
    *("validation", "", prompts.longvideobench, prompts.longvideobench_files, "correct_choice"),
    max_new_tokens=32,
)
BENCHMARKS: dict[str, Benchmark] = {
    "videomme": _SUBTITLED._replace(prompt=prompts.videomme, num_frames=128, subtitles=""),
    "videomme_w_subtitle": _SUBTITLED,
    "videomme_long_w_subtitle": _SUBTITLED._replace(keep=lambda doc: doc.get("duration") == "long"),
    "mlvu_dev": Benchmark("test", "", prompts.mlvu_dev, prompts.mlvu_files),
    "mlvu_test": Benchmark("test", "", prompts.mlvu_test, prompts.mlvu_files),
    "longvideobench_val_v": _LONGVIDEOBENCH,
    "longvideobench_val_i": _LONGVIDEOBENCH._replace(
        prompt=prompts.longvideobench_interleaved, num_frames=prompts.INTERLEAVED_FRAMES
    ),
    "lvbench": Benchmark("train", "", prompts.lvbench, prompts.lvbench_files),
    # Its task sets no length; lmms-eval's wrapper of LongVA then allows this many tokens.
    "tempcompass_multi_choice": Benchmark(
        *("test", "multi-choice", prompts.tempcompass, prompts.tempcompass_files),
        max_new_tokens=1024,
    ),
    "tvbench": Benchmark("train", "*", prompts.tvbench, prompts.tvbench_files, max_new_tokens=32),
    "temporalbench_short_qa": _TEMPORALBENCH,
    "temporalbench_long_qa": _TEMPORALBENCH._replace(split="test_long_qa"),
    "videomme_v2": _V2,
    "videomme_v2_w_subtitle": _V2._replace(
        prompt=prompts.videomme_v2_subtitled, subtitles="subtitle/*.jsonl"
    ),
    "videomme_v2_reasoning": _V2._replace(
        prompt=prompts.videomme_v2_reasoning, max_new_tokens=4096
    ),
}
