"""The pair record: one video, one question, two answers, and where they come from.

Records are `tf.train.Example`s of TFDS features, so that a shard directory opens with
`tfds.builder_from_directory(dir).as_data_source()` and with `grain.sources.ArrayRecordDataSource`
alike. TFDS does this without TensorFlow.
"""

import dataclasses
import functools
import threading
from typing import Any

import numpy as np

KINDS = ("localized", "comprehensive", "other", "video")
FRAME_ENCODINGS = ("clip", "png", "jpeg")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The model that wrote the answers, how the frames it saw were manipulated, the verdict."""

    model: str = ""
    manipulation: str = ""
    verdict: str = ""


@dataclasses.dataclass(frozen=True)
class PairRecord:
    """One preference pair. Times are in seconds from the start of the video.

    `frames` holds the encoded clip (one item, the bytes of the video file) or the sampled frames,
    one PNG or JPEG each. `timestamps` are those of the frames sampled when the record was made;
    `duration` is the number of frames over `fps`, the average frame rate.

    A pair of kind `video` is one answer and two videos, with `rejected` the same text as `chosen`:
    the answer is better on `video_id` than on `rejected_video_id`, whose clip or frames follow
    those of the first in `frames`. Its two sides share no prefix, so the train step refuses it.
    """

    id: str
    video_id: str
    kind: str
    question: str
    chosen: str
    rejected: str
    frame_encoding: str
    frames: tuple[bytes, ...]
    timestamps: tuple[float, ...]
    duration: float
    fps: float
    segment: tuple[float, float] | None = None
    provenance: Provenance = Provenance()
    rejected_video_id: str = ""

    def to_bytes(self) -> bytes:
        """A `tf.train.Example` of `features()`; equal records are equal bytes."""
        message = _serializer().get_tf_example(features().encode_example(self.to_example()))
        # TFDS' own `serialize_example` leaves the order of the fields to chance.
        return message.SerializeToString(deterministic=True)

    def to_example(self) -> dict[str, Any]:
        """What `features()` encodes."""
        # Not `dataclasses.asdict`, which would copy the clip.
        example = {**vars(self), "provenance": vars(self.provenance)}
        example["frames"] = list(self.frames)
        example["timestamps"] = np.asarray(self.timestamps, np.float64)
        example["segment"] = np.asarray(self.segment or (), np.float64)
        return example

    @classmethod
    def from_bytes(cls, data: bytes) -> "PairRecord":
        """The inverse of `to_bytes`; `ValueError` when the bytes are no such record."""
        known = features()
        from google.protobuf.message import DecodeError

        try:
            example = known.deserialize_example_np(data)
        except (DecodeError, KeyError, ValueError) as error:
            raise ValueError(f"not a pair record: {error}") from error
        texts = {k: v.decode() for k, v in example.items() if isinstance(v, bytes)}
        segment = example["segment"].tolist()
        return cls(
            **texts,
            frames=tuple(example["frames"]),
            timestamps=tuple(example["timestamps"].tolist()),
            duration=float(example["duration"]),
            fps=float(example["fps"]),
            segment=(segment[0], segment[1]) if segment else None,
            provenance=Provenance(**{k: v.decode() for k, v in example["provenance"].items()}),
        )


# TFDS imports its parts on first use; two threads doing so may wait for each other for ever.
_IMPORTING = threading.Lock()


def features():
    """The `tfds.features.FeaturesDict` of a pair record; float64 is kept exact, as bytes."""
    with _IMPORTING:
        return _features()


@functools.cache
def _features():
    import tensorflow_datasets as tfds  # half a second: only where records are read or written

    text = tfds.features.Text()
    scalar = tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")
    vector = tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes")
    names = ("id", "video_id", "rejected_video_id", "kind", "question", "chosen", "rejected")
    return tfds.features.FeaturesDict(
        {
            **dict.fromkeys((*names, "frame_encoding"), text),
            "frames": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_)),
            "timestamps": vector,
            "duration": scalar,
            "fps": scalar,
            "segment": vector,
            "provenance": {f.name: text for f in dataclasses.fields(Provenance)},
        }
    )


@functools.cache
def _serializer():
    info = features().get_serialized_info()
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(info)
