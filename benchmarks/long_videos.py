"""Long videos for benchmarks: a short one, repeated."""

import io
from pathlib import Path
from typing import Any

import av


def write_repeated(part: io.BytesIO, period: int, seconds: int, path: Path) -> None:
    """Write the packets of an encoded video again and again, later each time; `path` appears whole.

    Args:
        part: A video with one stream.
        period: Its length in seconds.
        seconds: Length of the result, a multiple of `period` or rounded up to one.
        path: Of the result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.mp4")
    with av.open(str(unfinished), "w") as out:
        target: Any = None
        for start in range(0, seconds, period):
            part.seek(0)
            with av.open(part) as source:
                target = target or out.add_stream_from_template(source.streams.video[0])
                shift = int(start / source.streams.video[0].time_base)
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = target
                        out.mux(packet)
    unfinished.rename(path)
