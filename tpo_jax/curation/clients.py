"""The interface of model clients: requests in, replies out.

Implementations: `local_client` (a model directory), `openai_client` (an endpoint) and
`world_client` (scripted replies on the synthetic world).
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tpo_jax.curation.units import Unit
from tpo_jax.curation.views import View
from tpo_jax.data.folders import video_at
from tpo_jax.errors import InputError
from tpo_jax.video.decode import VideoError
from tpo_jax.video.sampling import Sample, select_frames


class Stop(InputError):
    """No further request can succeed now: budget spent, access denied, or the endpoint is down."""


class Failure(NamedTuple):
    """A request that failed, and why."""

    reason: str


@dataclass(frozen=True)
class VideoView:
    """Frames of a video file, folder of images or stored video; equal clips are equal frames."""

    path: Path
    view: View

    def read(self) -> Sample | Failure:
        """Return the frames in the order they are shown, or why they cannot be read.

        Their times ascend in every view: a model that sees shuffled frames is told times as if
        the video ran in that order.
        """
        try:
            sample = select_frames(video_at(self.path), self.view.indices)
            return sample._replace(timestamps=np.sort(sample.timestamps))
        except (VideoError, ValueError, OSError) as error:
            return Failure(str(error))


@dataclass(frozen=True)
class Request:
    """One question to the client of one role.

    Attributes:
        id: Unique in a run.
        prompt: Text of the question.
        clip: Frames to look at; None for text alone.
        seed: Belongs to the request, so a sampled reply does not depend on other requests.
        unit: What the prompt was made from, for clients that read no prose.
    """

    id: str
    prompt: str
    clip: VideoView | None
    seed: int
    unit: Unit = field(compare=False)


Replies = Generator[tuple[Request, str | Failure], None, None]


class ModelClient(Protocol):
    """Answers the requests of one role."""

    def replies(self, requests: Iterable[Request]) -> Replies:
        """Yield a reply to every request, in any order; takes requests as it needs them.

        Raises:
            Stop: No further request can succeed.
        """
