"""A second, smaller encoding of a video: not exact, fast to decode and to read from slow disks."""

from pathlib import Path

import av

from tpo_jax.video.decode import Source, opened

# What x264 is told: good pictures, and a key frame where none is needed costs bytes only.
_OPTIONS = {"preset": "veryfast", "crf": "20"}


def encode(source: Source, target: Path, side: int) -> Path:
    """Encode a video again in H.264 with a key frame a second; return `target`.

    Every frame keeps its time and its rotation; sound is left out. A video whose shorter side is
    not longer than `side` keeps its size, made even.

    Args:
        source: The video.
        target: An MP4 file to write.
        side: Pixels of the shorter side.

    Raises:
        VideoError: The video cannot be decoded, or its frames have no times.
    """
    with opened(source) as video, av.open(str(target), "w") as out:
        reader, info = video.reader, video.info
        if not len(video.timeline.times):
            reader.fail("its frames have no times, which a proxy needs")
        stream = out.add_stream("libx264", rate=round(info.fps) or 1, options=_OPTIONS)
        scale = min(1.0, side / min(reader.size))
        width, height = (max(2, round(length * scale / 2) * 2) for length in reader.size)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = max(1, round(info.fps))
        stream.codec_context.time_base = reader.clock.tick
        stream.set_display_rotation(reader.turns * 90)
        reader.restart()
        start = int(video.timeline.times[0])
        while reader.grab():
            if reader.frame.pts is None:
                continue
            small = reader.frame.reformat(width, height, "yuv420p")
            small.pts, small.time_base = reader.frame.pts - start, reader.clock.tick
            small.pict_type = 0  # the encoder decides
            out.mux(stream.encode(small))
        out.mux(stream.encode())
    return target
