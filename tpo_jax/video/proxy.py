"""A second, smaller encoding of a video: not exact, fast to decode and to read from slow disks."""

from pathlib import Path

import av

from tpo_jax.video.decode import Source, Video, VideoError, opened

LEAST_SIDE = 16  # pixels; nothing can be seen in a smaller picture
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
        VideoError: The video cannot be decoded or encoded, or its frames have no times.
    """
    with opened(source) as video:
        try:
            if _encode(video, target, side) != video.timeline.num_frames:
                video.count()  # the packets promised other frames than the decoder returns
                _encode(video, target, side)
        except av.FFmpegError as error:
            raise VideoError(video.reader.name, f"no proxy of it: {error.strerror}") from error
    return target


def _encode(video: Video, target: Path, side: int) -> int:
    """Encode the frames with the times of the timeline, in order; return how many were decoded."""
    reader, info, times = video.reader, video.info, video.timeline.times
    if not len(times):
        reader.fail("its frames have no times, which a proxy needs")
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=round(info.fps) or 1, options=_OPTIONS)
        scale = min(1.0, side / min(reader.size))
        width, height = (max(2, round(length * scale / 2) * 2) for length in reader.size)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = max(1, round(info.fps))
        stream.codec_context.time_base = reader.clock.tick
        stream.set_display_rotation(reader.turns * 90)
        reader.restart()
        decoded = 0
        while reader.grab():
            if decoded < len(times):
                small = reader.frame.reformat(width, height, "yuv420p")
                # Not the frame's own time: AVI does not tell it where there are B-frames.
                small.pts = int(times[decoded] - times[0])
                small.time_base = reader.clock.tick
                small.pict_type = 0  # the encoder decides
                out.mux(stream.encode(small))
            decoded += 1
        out.mux(stream.encode())
    return decoded
