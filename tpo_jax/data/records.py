"""The pair record: one video, one question, two answers, or two videos and one answer, and where
they come from.

Records are `tf.train.Example`s of TFDS features, so that a shard directory opens with
`tfds.builder_from_directory(dir).as_data_source()` and with `grain.sources.ArrayRecordDataSource`
alike. TFDS does this without TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tpo_jax.data.array_records import IMPORTING_TFDS
from tpo_jax.families.template import Message, Question, visual_at

KINDS = ("localized", "comprehensive", "other", "video")
Span = tuple[float, float]  # start and end in seconds


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The model that wrote the answers, how the frames it saw were manipulated, the verdict."""

    model: str = ""
    manipulation: str = ""
    verdict: str = ""


@dataclasses.dataclass(frozen=True)
class PairTexts:
    """The names and texts of a pair, both in a list of pairs and in a record."""

    id: str
    video_id: str
    kind: str  # one of `KINDS`
    question: str
    chosen: str
    rejected: str
    # What comes before the question: system text and earlier turns. A turn of the user may hold a
    # placeholder for the video, which otherwise stands at the head of the question.
    history: tuple[Message, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def asked(self) -> Question:
        """The question with what was said before it, as `data/prompts.py` takes it."""
        if not self.history:
            return self.question
        return (*self.history, Message("user", self.question))

    @property
    def before_video(self) -> tuple[Message, ...]:
        """The messages that stand before the video: pairs of one row have the same ones."""
        conversation = (*self.history, Message("user", self.question))
        return conversation[: visual_at(conversation)]

    @property
    def answers(self) -> tuple[str, str]:
        """Both answers, in the order of the axis `A` of a batch: chosen, rejected."""
        return self.chosen, self.rejected

    def texts(self) -> dict[str, Any]:
        """Return the fields of this class, for the constructor of another one."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(PairTexts)}


@dataclasses.dataclass(frozen=True)
class PairRecord(PairTexts):
    """One preference pair. Times are in seconds from the start of the video.

    `video_digest` names the video in the store beside the pairs (`data/store.py`). `timestamps` are
    those of the frames sampled when the record was made; `duration` is the number of frames over
    `fps`, the average frame rate.

    A pair of kind `video` is one answer and two videos, with `rejected` the same text as `chosen`:
    the answer is better on `video_id` than on `rejected_video_id`. Its two sides share no prefix:
    they are two rows of a batch.
    """

    video_digest: str
    timestamps: tuple[float, ...]
    duration: float
    fps: float
    segment: Span | None = None
    provenance: Provenance = Provenance()
    rejected_video_id: str = ""
    rejected_video_digest: str = ""

    def to_bytes(self, history: bool = False) -> bytes:
        """Return a `tf.train.Example` of `features(history)`; equal records are equal bytes.

        Raises:
            ValueError: The record has a history that is not to be stored.
        """
        if self.history and not history:
            raise ValueError(f"pair {self.id!r} has a history")
        example = features(history).encode_example(self.to_example(history))
        message = _serializer(history).get_tf_example(example)
        # TFDS' own `serialize_example` writes the fields in no fixed order.
        return message.SerializeToString(deterministic=True)

    def to_example(self, history: bool = False) -> dict[str, Any]:
        """Return what `features(history)` encodes."""
        forms = _forms(history).items()
        return {name: form.to_example(getattr(self, name)) for name, form in forms}

    @classmethod
    def from_bytes(cls, data: bytes, history: bool = False) -> "PairRecord":
        """Return the record in `to_bytes`' result; `ValueError` if the bytes are no record."""
        known = features(history)
        from google.protobuf.message import DecodeError

        try:
            example = known.deserialize_example_np(data)
        except (DecodeError, KeyError, ValueError) as error:
            raise ValueError(f"not a pair record: {error}") from error
        forms = _forms(history).items()
        return cls(**{name: form.from_example(example[name]) for name, form in forms})

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON can hold it: a line of `index.jsonl`."""
        values = {**vars(self), "provenance": vars(self.provenance)}
        history = [message._asdict() for message in values.pop("history")]
        return values | ({"history": history} if history else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PairRecord":
        """Return the record of a line of `index.jsonl`.

        Raises:
            TypeError, KeyError: A field is missing, unknown, or of another type.
        """
        forms = _forms(history=True).items()
        read = {name: form.from_json(values[name]) for name, form in forms if name in values}
        return cls(**{**values, **read})


class _Form(NamedTuple):
    """How the fields of one type are stored."""

    feature: Callable[[Any], Any]  # of the module `tensorflow_datasets`
    to_example: Callable[[Any], Any]
    from_example: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _text(tfds: Any) -> Any:
    return tfds.features.Text()


def _messages(tfds: Any) -> Any:
    return tfds.features.Sequence({name: _text(tfds) for name in Message._fields})


def _columns(messages: tuple[Message, ...]) -> dict[str, list[str]]:
    return {name: [getattr(m, name) for m in messages] for name in Message._fields}


def _rows(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    texts = [[text.decode() for text in columns[name]] for name in Message._fields]
    return tuple(Message(*values) for values in zip(*texts, strict=True))


def _numbers(*shape: None) -> Callable[[Any], Any]:
    # As bytes, float64 stays exact.
    return lambda tfds: tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="bytes")


def _array(values: Any) -> np.ndarray:
    return np.asarray(values or (), np.float64)


def _checked(*types: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, types) or isinstance(value, bool):
            raise TypeError(f"{value!r} is not {' or '.join(kind.__name__ for kind in types)}")
        return value

    return check


_number = _checked(int, float)


def _times(values: Any) -> tuple[float, ...]:
    return tuple(map(_number, _checked(list)(values)))


_FORMS: dict[Any, _Form] = {
    str: _Form(_text, _same, bytes.decode, _checked(str)),
    float: _Form(_numbers(), _same, float, _number),
    tuple[float, ...]: _Form(_numbers(None), _array, lambda x: tuple(x.tolist()), _times),
    Span | None: _Form(
        _numbers(None), _array, lambda x: tuple(x.tolist()) or None, lambda v: v and _times(v)
    ),
    tuple[Message, ...]: _Form(
        _messages,
        _columns,
        _rows,
        lambda v: tuple(
            Message(**{name: _checked(str)(text) for name, text in _checked(dict)(m).items()})
            for m in _checked(list)(v)
        ),
    ),
    Provenance: _Form(
        lambda tfds: {field.name: _text(tfds) for field in dataclasses.fields(Provenance)},
        vars,
        lambda x: Provenance(**{name: text.decode() for name, text in x.items()}),
        lambda v: Provenance(**{name: _checked(str)(v[name]) for name in _checked(dict)(v)}),
    ),
}


@functools.cache
def _forms(history: bool) -> dict[str, _Form]:
    """Return how each field of a record is stored, by its type in the dataclass."""
    names = {field.name: field.type for field in dataclasses.fields(PairRecord)}
    return {name: _FORMS[kind] for name, kind in names.items() if history or name != "history"}


def features(history: bool = False) -> Any:
    """Return the `tfds.features.FeaturesDict` of a pair record, with conversations or without."""
    with IMPORTING_TFDS:
        return _features(history)


@functools.cache
def _features(history: bool) -> Any:
    import tensorflow_datasets as tfds  # half a second: only where records are read or written

    forms = _forms(history).items()
    return tfds.features.FeaturesDict({name: form.feature(tfds) for name, form in forms})


@functools.cache
def _serializer(history: bool) -> Any:
    info = features(history).get_serialized_info()
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(info)
