"""Files of the needle test: movie and needles in; scores and heat map out, as in LongVA's code."""

import functools
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from tpo_jax import families
from tpo_jax.data.processor import Processor
from tpo_jax.data.prompts import check_text
from tpo_jax.errors import InputError
from tpo_jax.evaluation.niah_cells import Cell, Needle, make_needle
from tpo_jax.evaluation.niah_videos import reduced
from tpo_jax.io import journal
from tpo_jax.io.files import read_json, replacing, write_json
from tpo_jax.video.decode import Video, VideoError, opened

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_AT_ONCE = 32  # frames of the movie's own size in memory


class Asked(NamedTuple):
    """A needle and its key, a hash of its image and texts."""

    key: str
    needle: Needle


def read_haystack(movie: Path, num_frames: int, processor: Processor) -> np.ndarray:
    """Read the first frames of a movie, one per second: every `round(fps)`-th.

    Returns:
        uint8 `[num_frames, S, S, 3]`, padded to squares; `[num_frames, height, width, 3]` for a
        model that sees a video as a whole.

    Raises:
        InputError: the movie cannot be read or is too short.
    """

    def every_second(video: Video, part: slice) -> np.ndarray:
        indices = np.arange(0, video.info.num_frames, max(1, round(video.info.fps)))
        if len(indices) < num_frames:
            raise InputError(
                f"{movie}: a haystack of {len(indices)} frames, one per second; the longest cell "
                f"has {num_frames} (--max_frames)"
            )
        return indices[:num_frames][part]

    parts = range(0, num_frames, _AT_ONCE)
    haystack: np.ndarray | None = None
    try:
        with opened(movie) as video:
            for start in parts:
                part = slice(start, start + _AT_ONCE)
                _, frames = video.select(functools.partial(every_second, part=part))
                frames = _kept(frames, processor)
                if haystack is None:
                    haystack = np.empty((num_frames, *frames.shape[1:]), np.uint8)
                haystack[part] = frames
    except VideoError as error:
        raise InputError(str(error)) from error
    assert haystack is not None  # a cell has a frame at least
    return haystack


def _kept(frames: np.ndarray, processor: Processor) -> np.ndarray:
    """Return frames of a movie as the cells take them."""
    if families.of(processor.config).independent_frames:
        return processor.resize(frames, pad=True)
    return reduced(frames, processor.config)


def read_needles(file: Path, processor: Processor) -> tuple[list[Asked], list[str]]:
    """Return the needles, their images padded to squares if the model takes squares, and one line
    for each needle that cannot be read.

    Args:
        file: `dataset.json` of the original, a list of `path` (an image beside it), `prompt` and
            `answer`; or the published table, `.parquet` with `image`, `question`, `answer`.

    Raises:
        InputError: a file that is not such a list.
    """
    if file.suffix == ".parquet":
        try:
            rows = pyarrow.parquet.read_table(file).to_pylist()
        except (ValueError, pyarrow.ArrowException) as error:
            raise InputError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
    else:
        rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{file}: not a list of needles")
    asked, problems = [], []
    for number, row in enumerate(rows):
        try:
            asked.append(_read_needle(file, row, processor))
        except InputError as error:
            problems.append(f"needle {number}: {error}")
    return asked, problems


def _read_needle(file: Path, row: Any, processor: Processor) -> Asked:
    if not isinstance(row, dict):
        raise InputError(f"{file}: a needle must be an object, not {row!r}")
    prompt, answer = row.get("prompt", row.get("question")), row.get("answer")
    picture = row.get("image") or row.get("path")
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise InputError(f"{file}: 'prompt' and 'answer' must be texts")
    for text in (prompt, answer):
        check_text(text)
    if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
        where, data = f"{file}: image", picture["bytes"]
    elif isinstance(picture, str):
        where = str(file.parent / picture)
        try:
            data = Path(where).read_bytes()
        except (OSError, ValueError) as error:  # a null character in the name
            raise InputError(f"{where}: {getattr(error, 'strerror', error)}") from error
    else:
        raise InputError(f"{file}: 'path' must name an image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # broken files make the library raise nearly everything
        raise InputError(f"{where}: cannot be read as an image: {error}") from error
    whole = not families.of(processor.config).independent_frames
    frame = pixels if whole else processor.resize(pixels[None], pad=True)[0]
    key = hashlib.sha256(data + json.dumps([prompt, answer]).encode()).hexdigest()[:16]
    return Asked(key, make_needle(processor, frame, prompt, answer))


class CellJournal(journal.Journal):
    """A journal of cells: `frames`, `depth`, `needle` (its key) and `found`.

    Args:
        path: the file; created if missing.
        owner: what results depend on besides cell and needle: weights, movie, dtype, ….
        keys: of the needles, by their number in a cell.

    Raises:
        InputError: another owner, another run that writes it, or a line that is not a result.
    """

    def __init__(self, path: Path, owner: dict[str, Any], keys: Sequence[str]) -> None:
        super().__init__(path, owner, "choose another --output")
        self.keys = keys
        self.found: dict[tuple[int, float, str], bool] = {}
        for where, line in self.lines:
            try:
                self.found[line["frames"], line["depth"], line["needle"]] = line["found"]
            except (KeyError, TypeError) as error:
                raise InputError(f"{where}: no result of a cell: {error}") from error

    def result(self, cell: Cell) -> bool | None:
        """Return whether the needle was found; None for a cell that was not tested yet."""
        return self.found.get((*cell[:2], self.keys[cell.needle]))

    def keep(self, results: Sequence[tuple[Cell, bool]]) -> None:
        """Append results; they are on disk when this returns."""
        rows = [(cell.frames, cell.depth, self.keys[cell.needle], hit) for cell, hit in results]
        names = ("frames", "depth", "needle", "found")
        self.add([dict(zip(names, row, strict=True)) for row in rows])
        self.found |= {row[:3]: row[3] for row in rows}


def write_results(
    folder: Path,
    scores: np.ndarray,
    lengths: Sequence[int],
    depths: Sequence[float],
    summary: dict[str, Any],
) -> None:
    """Write `all_accuracies.json`, `avg_accuracy.txt` and `heatmap.png` in the original's formats,
    and `summary.json`.

    The original rounds depths to the nearest ten percent, so depths of a step that is not a
    multiple of 0.1 may coincide; the picture shows their mean.

    Args:
        scores: `[lengths, depths]`, shares of the needles that were found.
        lengths: in frames.
        depths: 0 to 1.
        summary: written to its file unchanged.
    """
    tens = [round(100 * depth, -1) for depth in depths]
    rows = [
        {"Num. Frame": int(n), "Frame Depth": ten, "Score": float(score)}
        for n, line in zip(lengths, scores, strict=True)
        for ten, score in zip(tens, line, strict=True)
    ]
    _write(folder / "all_accuracies.json", json.dumps(rows, indent=4).encode())
    _write(folder / "avg_accuracy.txt", f"Average Accuracy: {float(scores.mean())}\n".encode())
    write_json(folder / "summary.json", summary)
    shown = sorted(set(tens))
    means = [scores[:, [t == ten for t in tens]].mean(axis=1) for ten in shown]
    _write(folder / "heatmap.png", heat_map(np.array(means), lengths, shown))


def heat_colours() -> "Colormap":
    """Return the original's map of scores from 0 to 1 to colours."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("needles", ["#F0496E", "#EBB839", "#9ad5b3"])


def heat_map(scores: np.ndarray, lengths: Sequence[int], percent: Sequence[float]) -> bytes:
    """Return a PNG of `[depths, lengths]` scores from 0 to 1; `percent` names the depths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17.5, 8), dpi=100, layout="tight")
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        scores, cmap=heat_colours(), vmin=0, vmax=1, edgecolors="white", linewidth=1.5
    )
    figure.colorbar(mesh).set_label("Score", size=14)
    names = [f"{n / 1000:.1f}K" if n >= 1000 else str(n) for n in lengths]
    axes.set_xticks(np.arange(len(lengths)) + 0.5, names, rotation=45, fontsize=14)
    axes.set_yticks(np.arange(len(percent)) + 0.5, [str(p) for p in percent], fontsize=14)
    axes.set_xlabel("Num. of Frames", fontsize=14)
    axes.set_ylabel("Depth Percent", fontsize=14)
    axes.invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _write(path: Path, data: bytes) -> None:
    with replacing(path, "wb") as file:
        file.write(data)
