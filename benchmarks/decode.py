"""Time to read n evenly spaced frames of a video, opening included: ours against the other ways.

    python benchmarks/decode.py [--media=DIR] [--cache=DIR] [--repeats=5] [--output=FILE.md]

Prints a Markdown table: wall seconds and CPU seconds of all threads (best of interleaved repeats),
both relative to ours, and whether the frames are those of reading through. The one-hour file
(H.264, 640x360, 25 frames/s, key frames up to 250 apart, 190 MB) is generated once, into --cache.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.long_videos import write_repeated
from tpo_jax.video import decode as video

MEDIA = flags.DEFINE_string("media", "../shared/media", "Folder of real clips; skipped if absent.")
CACHE = flags.DEFINE_string(
    "cache", str(Path(tempfile.gettempdir()) / "tpo_jax_benchmarks"), "Folder of generated clips."
)
REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Interleaved repeats; what takes over four times as long is tried once."
)
NUM_FRAMES = flags.DEFINE_multi_integer("num_frames", [32, 128], "Frames to read.")
OUTPUT = flags.DEFINE_string("output", None, "File for the table, besides standard output.")

Reader = Callable[[str, np.ndarray], np.ndarray]


def ours(path: str, indices: np.ndarray) -> np.ndarray:
    """Decode with `tpo_jax.video.decode.decode`."""
    return video.decode(path, indices)


def read_through(path: str, indices: np.ndarray) -> np.ndarray:
    """Decode with OpenCV up to the last wanted frame; convert the wanted ones to RGB."""
    capture, frames, position = cv2.VideoCapture(path, cv2.CAP_FFMPEG), {}, -1
    for index in np.unique(indices):
        while position < index:
            capture.grab()
            position += 1
        frames[index] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
    return np.stack([frames[index] for index in indices])


def seek_each(path: str, indices: np.ndarray) -> np.ndarray:
    """Decode with OpenCV, setting `CAP_PROP_POS_FRAMES` for every frame."""
    capture, frames = cv2.VideoCapture(path, cv2.CAP_FFMPEG), []
    for index in indices:
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(index))
        frames.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


def pyav(path: str, indices: np.ndarray) -> np.ndarray:
    """Decode with PyAV, seeking to the key frame where a frame lies over a second ahead."""
    frames, position = {}, -1
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate, decoded = float(stream.average_rate), container.decode(stream)
        for index in np.unique(indices):
            if index - position > rate:
                container.seek(int(index / rate / stream.time_base), stream=stream)
                decoded = container.decode(stream)
            while position != index:
                frame = next(decoded)
                position = round(frame.time * rate)
            frames[index] = frame.to_ndarray(format="rgb24")
    return np.stack([frames[index] for index in indices])


def decord(path: str, indices: np.ndarray) -> np.ndarray:
    """Decode with decord's `get_batch`."""
    import decord as package

    return package.VideoReader(path).get_batch(indices).asnumpy()


READERS: dict[str, Reader] = {
    "ours": ours,
    "read through": read_through,
    "seek each": seek_each,
    "decord": decord,
    "PyAV": pyav,
}


def generate(path: Path, seconds: int, gop: int, size: tuple[int, int], minute: int = 60) -> Path:
    """Encode a moving texture for one minute and repeat it to the length asked for."""
    if path.exists():
        return path
    width, height = size
    texture = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)
    minute, rate, part = min(minute, seconds), 25, io.BytesIO()
    with av.open(part, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for i in range(minute * rate):
            picture = np.roll(texture, (i, 2 * i), (0, 1))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    write_repeated(part, minute, seconds, path)
    return path


def measure(path: Path, num_frames: int, repeats: int) -> list[list[str]]:
    """Return rows of the table for one video."""
    info = video.probe(path)
    indices = np.linspace(0, info.num_frames - 1, num_frames, dtype=int)
    wall: dict[str, list[float]] = {name: [] for name in READERS}
    cpu: dict[str, list[float]] = {name: [] for name in READERS}
    frames = {}
    for repeat in range(repeats):
        for name, reader in READERS.items():
            if repeat and min(wall[name]) > 4 * min(wall["ours"]):
                continue  # a factor is all there is to learn
            start, cpu_start = time.perf_counter(), time.process_time()
            frames[name] = reader(str(path), indices)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    rows = []
    for name in READERS:
        exact = np.array_equal(frames[name], frames["read through"])
        times = [f"{min(taken[name]):.2f}" for taken in (wall, cpu)]
        ratios = [f"{min(taken[name]) / min(taken['ours']):.2f}" for taken in (wall, cpu)]
        rows.append([path.name, str(num_frames), name, *times, *ratios, "yes" if exact else "NO"])
        print(" ".join(rows[-1]), file=sys.stderr)
    return rows


def main(_) -> None:
    """Measure every clip and print the table."""
    cache = Path(CACHE.value)
    paths = sorted(Path(MEDIA.value).glob("*.mp4"))
    paths.append(generate(cache / "20s_groups_of_12.mp4", 20, 12, (1280, 720)))
    paths.append(generate(cache / "one_hour_groups_of_250.mp4", 3600, 250, (640, 360)))
    rows = [
        row for path in paths for n in NUM_FRAMES.value for row in measure(path, n, REPEATS.value)
    ]
    head = ["video", "frames", "reader", "wall s", "CPU s", "wall / ours", "CPU / ours", "exact"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(table)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(table + "\n")


if __name__ == "__main__":
    app.run(main)
