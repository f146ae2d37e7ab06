"""Small videos of every awkward kind, written with PyAV, and PyAV as the frame-exact reader."""

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

FAST = {"libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"}, "libx264": {"preset": "veryfast"}}


def write(
    path: Path,
    num_frames: int = 90,
    size: tuple[int, int] = (128, 96),
    codec: str = "libx264",
    rate: int | Fraction = 30,
    milliseconds: np.ndarray | None = None,
    pixels: str = "yuv420p",
    gop: int = 24,
    b_frames: int = 3,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write a moving texture; `milliseconds` are the frames' times where the rate varies."""
    rng = np.random.default_rng(0)
    width, height = size
    texture = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)[:height, :width]
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.options = FAST.get(codec, {}) | (options or {})
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, (i, 3 * i), (0, 1)), format="rgb24")
            frame.pts = i if milliseconds is None else int(milliseconds[i])
            if milliseconds is not None:
                frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


class Stream(NamedTuple):
    """What a clip of 30 frames a second is, apart from its picture."""

    num_frames: int
    gop: int
    b_frames: int
    suffix: str

    def write(self, folder: Path) -> Path:
        """Write it to a folder."""
        path = folder / f"clip.{self.suffix}"
        return write(path, self.num_frames, gop=self.gop, b_frames=self.b_frames)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all frames and their times in seconds, not rotated: PyAV leaves that to its caller."""
    frames, times = [], []
    with av.open(str(path)) as container:
        # swscale refuses to convert interlaced frames to others, so all become progressive.
        graph = av.filter.Graph()
        nodes = graph.add_buffer(template=container.streams.video[0]), graph.add("setfield", "prog")
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        for frame in container.decode(video=0):
            graph.vpush(frame)
            # The order of the channels matters to swscale's rounding.
            picture = graph.vpull().reformat(format="bgr24", interpolation="BICUBIC")
            frames.append(picture.to_ndarray()[..., ::-1])
            times.append(frame.time)
    return np.stack(frames), np.array(times, object)


def import_decord():
    """Return decord, another reader, without what importing it appends to PATH; skip if absent.

    Commands that tests call share a process as long as their environment is the same.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.environ["PATH"])
        return pytest.importorskip("decord", reason="decord is not installed")


def patched(path: Path, box: bytes, offset: int, layout: str, *values: int) -> Path:
    """Change numbers in a file, `offset` bytes behind the name of an MP4 box."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(box) + 4 + offset, *values)
    path.write_bytes(data)
    return path


def _uneven(n: int = 90) -> np.ndarray:
    steps = np.random.default_rng(1).integers(1, 400, n)
    return np.cumsum(steps) - steps[0]


def _rotated(path: Path, width: int) -> Path:
    """Write a video turned a quarter by the matrix of its track header."""
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, width << 16, 0, 1 << 30)
    return patched(write(path), b"tkhd", 40, ">9i", *matrix)


def _trimmed(path: Path) -> Path:
    """Write one that shows frames 40 to 69 by its edit list (times in 1/15360 and 1/1000 s)."""
    return patched(write(path), b"elst", 8, ">Ii", 1000, 1024 + 40 * 512)


def _headless(path: Path) -> Path:
    """Write a broadcast joined in the middle of a group of pictures."""
    data = write(path, gop=30).read_bytes()
    path.write_bytes(data[: 188 * 3] + data[188 * (len(data) // 188 // 4) :])
    return path


VIDEOS = {
    "constant.mp4": write,
    "long_group.mp4": lambda path: write(path, 200, gop=100),
    "no_b_frames.mp4": lambda path: write(path, b_frames=0),
    "open_groups.mp4": lambda path: write(path, options={"x264-params": "open-gop=1:scenecut=0"}),
    "intra_refresh.mp4": lambda path: write(path, options={"x264-params": "intra-refresh=1"}),
    "fragments.mp4": lambda path: write(path, container={"movflags": "frag_keyframe+empty_moov"}),
    "variable.mp4": lambda path: write(path, milliseconds=_uneven()),
    "variable.mkv": lambda path: write(path, milliseconds=_uneven()),
    "variable.webm": lambda path: write(path, codec="libvpx-vp9", milliseconds=_uneven()),
    "rotated.mp4": lambda path: _rotated(path, 96),
    "one.mp4": lambda path: write(path, 1),
    "two.mp4": lambda path: write(path, 2),
    "odd_width.webm": lambda path: write(path, size=(127, 96), codec="libvpx-vp9"),
    "odd.mp4": lambda path: write(path, size=(127, 95), pixels="yuv444p"),
    "odd.webm": lambda path: write(path, size=(127, 95), codec="libvpx-vp9"),
    "ten_bits.mp4": lambda path: write(path, pixels="yuv420p10le"),
    "ntsc.mkv": lambda path: write(path, rate=Fraction(24000, 1001)),
    "hevc.mp4": lambda path: write(path, codec="libx265", options={"x265-params": "log-level=0"}),
    "broadcast.ts": write,
    "headless.ts": _headless,
    "mpeg2.mpg": lambda path: write(path, codec="mpeg2video", rate=25, b_frames=2),
    "mpeg4.avi": lambda path: write(path, codec="mpeg4", b_frames=2),
    "h264.avi": write,
    "jpeg.avi": lambda path: write(path, codec="mjpeg", pixels="yuvj420p", b_frames=0),
    "stream.h264": write,
    "flash.flv": write,
    "animation.gif": lambda path: write(path, 20, codec="gif", pixels="rgb8", rate=10),
    "trimmed.mp4": _trimmed,
    "interlaced.mkv": lambda path: write(path, options={"x264-params": "interlaced=1"}),
    "fields.ts": lambda path: write(path, options={"x264-params": "interlaced=1"}),
}
