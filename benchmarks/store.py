"""Long videos: what it costs to store them for training and to read n frames of one.

    python benchmarks/store.py [--cache=DIR] [--minutes=30 --minutes=120] [--output=FILE.md]
    python benchmarks/store.py --minutes=30 --groups=5 --frames=32 --readers=store --readers=proxy
    python benchmarks/store.py --minutes=30 --frames=32 --repeats=5 --readers=store --readers=PyAV

Generates H.264 of 854x480 pixels, 30 frames/s and 2.6 Mbit/s with a key frame every 2, 5 or 10
seconds, prepares it with four pairs, and reads evenly spaced frames: of the shards; of the layout
of format 1, one record with the whole file; of the file with our reader, PyAV and decord; if asked
for, of shards with a proxy, whose encoding takes half as long as the video. Every reading is a
process of its own, after the files were read once; with `--repeats` the readers take turns. Prints
a Markdown table: bytes read (`/proc/self/io`), also relative to the groups of pictures that hold
the frames, wall and CPU seconds without the start of Python, peak resident memory with it, and
whether the frames are those of the file.
"""

import functools
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.long_videos import write_repeated

CACHE = flags.DEFINE_string(
    "cache", str(Path(tempfile.gettempdir()) / "tpo_jax_store"), "Folder of what is generated."
)
MINUTES = flags.DEFINE_multi_integer("minutes", [30, 120], "Lengths of the videos.")
GROUPS = flags.DEFINE_multi_integer("groups", [2, 5, 10], "Seconds between key frames.")
FRAMES = flags.DEFINE_multi_integer("frames", [8, 32, 128, 1024], "Frames to read.")
READERS = flags.DEFINE_multi_string(
    "readers",
    ["store", "format 1", "file", "PyAV", "decord"],
    "Readers to compare; also 'PyAV, 1 thread'; 'decoding alone' of packets in memory, no pixels; "
    "and proxy, shards made with --proxy=384.",
)
REPEATS = flags.DEFINE_integer("repeats", 1, "Of every reading, in turn; medians count.", 1)
OUTPUT = flags.DEFINE_string("output", None, "File for the table, besides standard output.")
CASE = flags.DEFINE_string("case", None, "One reading, as JSON: reader, video, num_frames.")

RATE, SIZE, BITS = 30, (854, 480), 2_600_000


def generate(path: Path, minutes: int, seconds: int) -> Path:
    """Encode a minute of a moving texture and repeat its packets to the length asked for."""
    if path.exists():
        return path
    rng, part = np.random.default_rng(0), io.BytesIO()
    width, height = SIZE
    texture = rng.integers(0, 256, (height // 2, width // 2, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    with av.open(part, "w", format="mp4") as out:
        options = {"preset": "ultrafast", "x264-params": "scenecut=0"}
        stream = out.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *SIZE, "yuv420p", BITS
        stream.codec_context.gop_size = seconds * RATE
        for i in range(60 * RATE):
            picture = np.roll(texture, (i, 2 * i), (0, 1)) // 2
            picture[i % height // 2 :][:80] = rng.integers(0, 64, (1, width, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    write_repeated(part, 60, 60 * minutes, path)
    return path


def prepare(video: Path, name: str = "shards", proxy: int = 0) -> None:
    """Prepare four pairs of a video in this process, anew."""
    from tpo_jax.data import preparation

    folder = video.with_suffix("")
    folder.mkdir(exist_ok=True)
    pairs = folder / "pairs.json"
    fields = {"video": video.name, "prompt": "What is it?", "chosen": "Noise.", "rejected": "A cat"}
    pairs.write_text(json.dumps([fields | {"id": str(i)} for i in range(4)]))
    shutil.rmtree(folder / name, ignore_errors=True)
    settings = preparation.Settings(num_frames=32, proxy=proxy)
    preparation.prepare(pairs, video.parent, folder / name, settings)


def made(video: Path, name: str = "shards") -> list[str]:
    """Prepare a video in another process; return a row of the table of that."""
    found = json.loads(run_case(f"prepare {name}", video, 0))
    shards = video.with_suffix("") / name
    size = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
    length = video.stat().st_size
    numbers = f"{found['wall']:.0f}", f"{found['cpu']:.0f}", f"{found['memory']:.0f}"
    title = video.stem + (", proxy" if name == "proxy" else "")
    return [title, f"{length / 1e6:.0f}", f"{size / length:.4f}", *numbers]


def run_case(name: str, video: Path, num_frames: int) -> str:
    """Run a reader, or what makes a file, in a process of its own; return what it printed."""
    case = json.dumps({"name": name, "video": str(video), "num_frames": num_frames})
    command = [sys.executable, __file__, f"--case={case}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
    return done.stdout if not done.returncode else ""


def write_format_1(video: Path) -> None:
    """Write the record of a pair as format 1 had it: the bytes of the whole file."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["frames"].bytes_list.value.append(video.read_bytes())
    writer = ArrayRecordWriter(str(video.with_suffix(".format1")), "group_size:1")
    writer.write(example.SerializeToString())
    writer.close()


def from_store(video: Path, num_frames: int, name: str = "shards") -> np.ndarray:
    """Read the first pair's frames as `train` does."""
    from tpo_jax.data.clips import read_clip
    from tpo_jax.data.shards import open_shards

    shards = open_shards(video.with_suffix("") / name)
    return read_clip(shards, shards.index[0], "uniform", num_frames).frames


def from_format_1(video: Path, num_frames: int) -> np.ndarray:
    """Read the whole file out of its record, as format 1 did, and decode it."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorflow_datasets.proto import tf_example_pb2

    from tpo_jax.video.sampling import read_frames

    (record,) = ArrayRecordDataSource([str(video.with_suffix(".format1"))])
    example = tf_example_pb2.Example.FromString(record)
    (data,) = example.features.feature["frames"].bytes_list.value
    return read_frames(data, "uniform", num_frames)[0]


def from_file(video: Path, num_frames: int) -> np.ndarray:
    """Read the file with our reader."""
    from tpo_jax.video.sampling import read_frames

    return read_frames(video, "uniform", num_frames)[0]


def _indices(video: Path, num_frames: int) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.linspace(0, container.streams.video[0].frames - 1, num_frames, dtype=int)


def from_pyav(video: Path, num_frames: int, threads: int = 0) -> np.ndarray:
    """Read the file with PyAV, seeking where a key frame lies between; 0 threads: its choice."""
    frames, position = [], -1
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        decoded, entries = container.decode(stream), stream.index_entries
        for index in np.linspace(0, stream.frames - 1, num_frames, dtype=int).tolist():
            time = round(index / RATE / stream.time_base)
            if entries.search_timestamp(time) > position:
                container.seek(time, stream=stream)
                decoded = container.decode(stream)
            while position != index:
                frame = next(decoded)
                position = round(frame.time * RATE)
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


@functools.cache
def _stretches(video: Path, num_frames: int) -> list[list[av.Packet]]:
    """Return the packets from a key frame to each frame."""
    stretches: list[list[av.Packet]] = []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        for index in _indices(video, num_frames).tolist():
            time = round(index / RATE / stream.time_base)
            container.seek(time, stream=stream)
            stretches.append([])
            for packet in container.demux(stream):
                stretches[-1].append(packet)
                if packet.pts == time:
                    break
    return stretches


def only_decode(video: Path, num_frames: int) -> np.ndarray:
    """Decode packets in memory, on all cores, and drop the pictures: what no reader can beat."""
    stretches, cores = _stretches(video, num_frames), os.cpu_count() or 1

    def decode(mine: list[list[av.Packet]]) -> None:
        with av.open(str(video)) as container:
            decoder = container.streams.video[0].codec_context
            decoder.thread_count = 1
            for stretch in mine:
                for packet in (*stretch, None):
                    decoder.decode(packet)
                decoder.flush_buffers()

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(decode, [stretches[core::cores] for core in range(cores)]))
    return np.zeros(0)


def from_decord(video: Path, num_frames: int) -> np.ndarray:
    """Read the file with decord's `get_batch`."""
    import decord

    return decord.VideoReader(str(video)).get_batch(_indices(video, num_frames)).asnumpy()


READ: dict[str, Callable[[Path, int], np.ndarray]] = {
    "store": from_store,
    "format 1": from_format_1,
    "file": from_file,
    "PyAV": from_pyav,
    "PyAV, 1 thread": functools.partial(from_pyav, threads=1),
    "decoding alone": only_decode,
    "decord": from_decord,
    "proxy": functools.partial(from_store, name="proxy"),
}
MAKE: dict[str, Callable[[Path], None]] = {
    "prepare shards": prepare,
    "prepare proxy": functools.partial(prepare, name="proxy", proxy=384),
    "write format 1": write_format_1,
}


def once(name: str, video: Path, num_frames: int) -> dict[str, Any]:
    """Do it in this process; return bytes read, seconds, memory and a hash of the frames."""
    frames = np.zeros(0)
    if name in READ:
        READ[name](video, 1)  # what it imports, and its threads
    if name == "decoding alone":
        _stretches(video, num_frames)
    read, start, cpu = _bytes_read(), time.perf_counter(), time.process_time()
    if name in READ:
        frames = READ[name](video, num_frames)
    else:
        MAKE[name](video)
    return {
        "bytes": _bytes_read() - read,
        "wall": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "memory": _peak_memory(),
        "hash": hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest(),
    }


def _peak_memory() -> float:
    """Return the most memory that this process had, MB; `getrusage` counts its parent's, too."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1e3


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def needed(video: Path, num_frames: int) -> int:
    """Return the bytes of the groups of pictures that hold the frames."""
    groups, key = [0], []
    with av.open(str(video)) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.is_keyframe:
                groups.append(0)
                key.append(packet.pts)
            groups[-1] += packet.size
        stream = container.streams.video[0]
        times = _indices(video, num_frames) / RATE / float(stream.time_base) + key[0]
    return sum(groups[1 + i] for i in set(np.searchsorted(key, times + 0.5, side="right") - 1))


def measure(video: Path, num_frames: int) -> list[list[str]]:
    """Return rows of the table for one video."""
    rows, frames, least = [], "", needed(video, num_frames)
    rounds = [
        {reader: run_case(reader, video, num_frames) for reader in READERS.value}
        for _ in range(REPEATS.value)
    ]
    for reader in READERS.value:
        row = [video.stem, str(num_frames), reader]
        if not all(printed[reader] for printed in rounds):
            rows.append([*row, *["–"] * 5, "cannot"])
            continue
        all_found = [json.loads(printed[reader]) for printed in rounds]
        found = all_found[0]
        for name in ("bytes", "wall", "cpu", "memory"):
            found[name] = statistics.median(each[name] for each in all_found)
        frames = frames or found["hash"]
        numbers = (
            f"{found['bytes'] / 1e6:.1f}",
            f"{found['bytes'] / least:.2f}",
            f"{found['wall']:.2f}",
            f"{found['cpu']:.2f}",
            f"{found['memory']:.0f}",
        )
        same = {"proxy": "another encoding", "decoding alone": "–"}.get(reader, "NO")
        rows.append([*row, *numbers, "yes" if found["hash"] == frames else same])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(_) -> None:
    """Measure every video and print the tables."""
    if CASE.value:
        case = json.loads(CASE.value)
        print(json.dumps(once(case["name"], Path(case["video"]), case["num_frames"])))
        return
    prepared, rows = [], []
    for minutes in MINUTES.value:
        for seconds in GROUPS.value:
            name = f"{minutes}_minutes_groups_of_{seconds}_s.mp4"
            video = generate(Path(CACHE.value) / name, minutes, seconds)
            for shards in ("shards", *(["proxy"] if "proxy" in READERS.value else [])):
                prepared.append(made(video, shards))
                print(" ".join(prepared[-1]), file=sys.stderr, flush=True)
            if "format 1" in READERS.value:
                run_case("write format 1", video, 0)  # fails from 2 GB on
            for num_frames in FRAMES.value:
                rows += measure(video, num_frames)
    head = ["video", "MB", "shards / video", "prepare, s", "CPU s", "peak MB"]
    read = ["video", "frames", "reader", "MB read", "read / groups needed", "wall s", "CPU s"]
    text = table(head, prepared) + "\n" + table([*read, "peak MB", "the file's frames"], rows)
    print(text)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text)


if __name__ == "__main__":
    app.run(main)
