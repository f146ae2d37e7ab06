"""What every reader of a video has: the frame decoded last, its time, its colours.

Colours are those of swscale's bicubic conversion to BGR, bit for bit, as OpenCV has them. For 8-bit
4:2:0 of even height decord agrees; for an odd height or ten bits it uses other chroma filters.
"""

import abc
import functools
from collections.abc import Iterable
from typing import NoReturn

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from tpo_jax.video.timeline import Clock, Timeline

# PyAV's own error, not Python's: FFmpeg could not allocate what a file claims to need.
NO_MEMORY = "damaged, or too large: FFmpeg asks for more memory than there is"


class VideoError(ValueError):
    """A video that cannot be read: which, and why, in one line."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Reader(abc.ABC):
    """Decodes a video from its start, or from where a seek lands; `frame` is the last one decoded.

    Attributes:
        name: Of the video, for messages.
        clock: How the video counts time.
        size: Width and height of the first frame, before rotation.
        turns: Quarter turns by which frames are rotated, counterclockwise.
        started: Whether a frame is decoded and the next one follows it.
        decoders: How many readers of the video may decode parts of it at once.
    """

    name: str
    clock: Clock
    size: tuple[int, int]
    turns: int
    started: bool
    decoders = 1
    frame: av.VideoFrame

    @abc.abstractmethod
    def timeline(self) -> Timeline | None:
        """Return the frames that are promised; None: they must be counted by decoding them."""

    @abc.abstractmethod
    def grab(self) -> bool:
        """Decode the next frame; false at the end. Damaged packets are skipped."""

    @abc.abstractmethod
    def seek(self, time: int) -> bool:
        """Decode a frame at or before a time in ticks, from a key frame; false if that fails."""

    @abc.abstractmethod
    def restart(self) -> None:
        """Go back to before the first frame."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file and the decoder."""

    def beside(self, count: int) -> "Reader":
        """Return one of `count` readers of this video, at most `decoders`, working concurrently."""
        return self

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:  # noqa: B027, an offer
        """Note what will be decoded: spans from a key frame to the last frame wanted after it."""

    @property
    def time(self) -> int | None:
        """Presentation time of the frame in ticks, or its decoding time if it has none."""
        return self.frame.dts if self.frame.pts is None else self.frame.pts

    def convert(self, out: np.ndarray) -> bool:
        """Write the frame as RGB, rotated, to uint8 `[height, width, 3]`; false if that fails."""
        try:
            # The order of the channels matters to the rounding of swscale.
            picture = self._reformatter.reformat(
                self._progressive(), format="bgr24", interpolation="BICUBIC"
            )
        except (av.FFmpegError, ValueError):
            return False
        plane = picture.planes[0]
        pixels = np.lib.stride_tricks.as_strided(
            np.frombuffer(memoryview(plane), np.uint8),
            (picture.height, picture.width, 3),
            (plane.line_size, 3, 1),
        )
        if self.turns:
            out[...] = np.rot90(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), self.turns)
        else:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=out)
        return True

    @functools.cached_property
    def _reformatter(self) -> VideoReformatter:
        return VideoReformatter()

    def _progressive(self) -> av.VideoFrame:
        """Return the frame marked as progressive: swscale does not convert interlaced ones."""
        if not self.frame.interlaced_frame:
            return self.frame
        self._graph.vpush(self.frame)
        return self._graph.vpull()

    @functools.cached_property
    def _graph(self) -> av.filter.Graph:
        graph, frame = av.filter.Graph(), self.frame
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self.clock.tick
        )
        sink = graph.add("buffersink")
        graph.link_nodes(source, graph.add("setfield", "prog"), sink).configure()
        return graph

    def fail(self, reason: str) -> NoReturn:
        """Raise a `VideoError` about this video."""
        raise VideoError(self.name, reason)
