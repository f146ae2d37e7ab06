"""Select and place subtitles in prompts as lmms-eval does.

The oddities are part of the prompts behind the published numbers: the order of Video-MME's lines,
and that only text in a certain font tag is shown.
"""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.io.files import read_lines

# Evenly spaced frames that select Video-MME's lines, whatever number the model sees.
FRAMES = 32
_TAG = re.compile(r'<font color="white" size=".72c">(.*?)</font>')


def read_srt(path: Path) -> dict[tuple[float, float], str]:
    """Return the texts of a SubRip file by (start, end) in seconds, in file order.

    A repeated time keeps its first place and its last text. Blocks of fewer than three lines are
    skipped, as in lmms-eval.

    Raises:
        InputError: A time cannot be parsed, or the file is not text.
    """
    try:
        blocks = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as subtitles: {error}") from error
    texts, line = {}, 1
    for block in blocks:
        lines = block.split("\n")
        if block.strip() and len(lines) >= 3:
            try:
                start, end = map(_seconds, lines[1].split(" --> ")[:2])
            except (ValueError, OverflowError) as error:
                raise InputError(
                    f"{path}:{line + 1}: {lines[1]!r} is not a time range H:M:S,ms --> H:M:S,ms"
                ) from error
            texts[start, end] = " ".join(lines[2:])
        line += len(lines) + 1
    return texts


def _seconds(time: str) -> float:
    hours, minutes, rest = time.split(":")
    seconds, milliseconds = rest.split(",")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(milliseconds) / 1000


def shown_lines(path: Path, video: Path, num_frames: int = FRAMES) -> list[str]:
    """Return the lines of Video-MME's prompt: those shown at evenly spaced frames.

    Args:
        video: An MP4; lmms-eval opens no other kind, so other videos have no lines.
        num_frames: How many frames select lines.

    Raises:
        InputError: See `read_srt`.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet about broken files
    capture = cv2.VideoCapture(str(video)) if video.is_file() else None
    # OpenCV's numbers, not those of `video.decode`: the prompts depend on them.
    fps = capture.get(cv2.CAP_PROP_FPS) if capture else 0.0
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture else 0
    entries = [
        (int(start * fps), int(end * fps), text) for (start, end), text in read_srt(path).items()
    ]
    found = [
        index
        for frame in np.linspace(0, total - 1, num_frames, dtype=int).tolist()
        for index, (start, end, _) in enumerate(entries)
        if start <= frame < end
    ]
    # In the order of a set of integers, not of time, as in lmms-eval.
    tagged = (_TAG.findall(entries[index][2]) for index in list(set(found)))
    return [matches[0] for matches in tagged if matches]


def interleave(path: Path, duration: float, offset: float, num_frames: int) -> str:
    """Return LongVideoBench's text: one `<image>` per frame, and the subtitles between them.

    Args:
        path: JSON list of subtitles: `timestamp` [start, end] and `text`, or `start`, `end` as
            H:M:S and `line`.
        duration: Of the video, seconds.
        offset: `starting_timestamp_for_subtitles`, seconds.
        num_frames: Most frames.

    Raises:
        InputError: The file is not such a list, or a time cannot be parsed.
    """
    if duration > num_frames:
        times = [duration / num_frames * i for i in range(num_frames)]
    else:
        times = list(map(float, range(int(duration))))
    if not path.is_file():  # reading a device would never end
        raise InputError(f"{path}: no such subtitle file")
    try:
        subtitles = list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a list of subtitles: {error}") from error
    pieces, placed = [], 0
    for number, subtitle in enumerate(subtitles):
        try:
            start, end, text = _entry(subtitle, duration)
            start, end = start - offset, end - offset
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{path}: the times of subtitle {number} cannot be parsed: {subtitle!r}"
            ) from error
        middle = (start + end) / 2
        while placed < len(times) and times[placed] <= middle:
            pieces.append("<image>")
            placed += 1
        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < time < end for time in times):
            pieces.append(text)
    return "\n".join(pieces + ["<image>"] * (len(times) - placed))


def _entry(subtitle: dict, duration: float) -> tuple[float, float, str]:
    if "timestamp" in subtitle:
        start, end = subtitle["timestamp"]
        # As in lmms-eval, an integer counts as an open end.
        return float(start), end if isinstance(end, float) else duration, str(subtitle["text"])
    return _clock(subtitle["start"]), _clock(subtitle["end"]), str(subtitle["line"])


def _clock(time: str) -> float:
    hours, minutes, seconds = time.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def spoken(path: Path) -> str:
    """Return the words of a file of Video-MME-v2, joined by spaces.

    Args:
        path: JSON Lines; `text` is a word or several.

    Raises:
        InputError: A line has no text.
    """
    words = []
    for where, line in read_lines(path):
        if not isinstance(word := line.get("text"), str):
            raise InputError(f"{where}: 'text' must be a text")
        words.append(word)
    return " ".join(words)
