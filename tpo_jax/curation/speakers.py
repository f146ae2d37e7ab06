"""Who is asked for captions, questions, answers and verdicts: one interface, several back ends."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tpo_jax.curation.views import View
from tpo_jax.errors import InputError
from tpo_jax.video.decode import VideoError
from tpo_jax.video.sampling import select_frames

ROLES = ("captioner", "questioner", "answerer", "judge")


class Stop(InputError):
    """No further request can succeed now: no budget left, no access, an endpoint that is down."""


class Failure(NamedTuple):
    """A request that was given up, and why."""

    reason: str


@dataclass(frozen=True)
class Clip:
    """Frames of a video file or folder of images; equal clips are equal frames."""

    path: Path
    view: View

    def read(self) -> np.ndarray:
        """The frames, uint8 `[n, height, width, 3]`.

        Raises:
            VideoError: they cannot be read.
            ValueError: the view leaves none of this video.
        """
        return select_frames(self.path, self.view.indices)[0]


@dataclass(frozen=True)
class Request:
    """One thing asked of one role.

    `facts` is what the prompt was made of, for back ends that read no prose. `seed` belongs to the
    request, so that a reply does not depend on what else is asked, where or when.
    """

    id: str
    prompt: str
    clip: Clip | None
    seed: int
    facts: Mapping[str, Any] = field(compare=False)


class Speaker(Protocol):
    """A back end in one role."""

    def replies(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """A reply to every request, in any order, as they come; takes requests as it needs them.

        Raises:
            Stop: it makes no sense to go on.
        """


def seed_of(*parts: str | int) -> int:
    """31 bits that depend on all parts and on nothing else."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def try_read(clip: Clip) -> np.ndarray | Failure:
    """The frames, or why there are none."""
    try:
        return clip.read()
    except (VideoError, ValueError, OSError) as error:
        return Failure(str(error))
