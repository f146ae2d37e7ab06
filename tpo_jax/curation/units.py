"""What is known about one unit of work, from a video file to a judged pair."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A video, later a segment of it, a question about the segment, a pair of answers.

    Each stage makes new units out of those of the stage before and sets further fields; a field
    that no stage has set yet has its default. A stage's journal stores the fields that the stage
    sets (`Stage.adds`), under these names.

    Attributes:
        id: Unique in a run. A video's is its path without suffix; stage `segments` appends `#i`,
            stage `questions` appends `.i`.
        video: Path of the file or folder of images, relative to `videos.folder`.
        twin: Another video with the same id, which makes this one fail; "" if there is none.
        num_frames: Of the video. Set by `videos`, like the next four.
        fps: Average frames per second.
        width: Pixels.
        height: Pixels.
        duration: Seconds.
        kind: "localized" (about a segment) or "comprehensive" (about the whole video). Set by
            `segments`.
        segment: Start and end in seconds; None for the whole video. Set by `segments`.
        caption: What the captioner saw in the segment. Set by `captions`.
        type: Question type, one of `templates.TYPES`. Set by `questions`, like the next two.
        question: Text of the question.
        reference: The question writer's answer.
        chosen: The answer given on well-chosen frames. Set by `answers`, like the next two.
        rejected: The answer given on worse frames.
        manipulation: The views of both answers, as `segment / rest`.
        verdict: The judge's words, as `yes/no/yes`, or "unjudged". Set by `judged`.
    """

    id: str
    video: str
    twin: str = ""
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    duration: float = 0.0
    kind: str = ""
    segment: tuple[float, float] | None = None
    caption: str = ""
    type: str = ""
    question: str = ""
    reference: str = ""
    chosen: str = ""
    rejected: str = ""
    manipulation: str = ""
    verdict: str = ""

    @property
    def span(self) -> tuple[float, float]:
        """Start and end in seconds of what the unit is about."""
        return self.segment or (0.0, self.duration)
