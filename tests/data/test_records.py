import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_jax.data.records import KINDS, PairRecord, Provenance, features
from tpo_jax.families.template import ROLES, Message

times = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.builds(
    PairRecord,
    id=text,
    video_id=text,
    kind=st.sampled_from(KINDS),
    question=text,
    chosen=text,
    rejected=text,
    video_digest=text,
    timestamps=st.lists(times, max_size=5).map(tuple),
    duration=times,
    fps=times,
    segment=st.none() | st.tuples(times, times),
    provenance=st.builds(Provenance, text, text, text),
    rejected_video_id=text,
    rejected_video_digest=text,
)
history = st.lists(st.builds(Message, st.sampled_from(ROLES), text), max_size=3).map(tuple)


@settings(max_examples=50, deadline=None)
@given(records, history)
def test_round_trip_is_exact(record, history):
    assert PairRecord.from_bytes(record.to_bytes()) == record
    with_history = dataclasses.replace(record, history=history)
    assert PairRecord.from_bytes(with_history.to_bytes(True), True) == with_history
    line = json.dumps(with_history.to_json())
    assert PairRecord.from_json(json.loads(line)) == with_history
    assert ("history" in json.loads(line)) == bool(history)


def test_records_of_questions_alone_are_those_of_before():
    """Bytes and features without a field for conversations, which are never left out in silence."""
    record = PairRecord("a", "v", "other", "q", "c", "r", "d", (0.0,), 1.0, 25.0)
    assert b"history" not in record.to_bytes() and "history" not in features()
    assert b"history/role" in record.to_bytes(history=True)
    with pytest.raises(ValueError, match="pair 'a' has a history"):
        dataclasses.replace(record, history=(Message("user", "Who?"),)).to_bytes()


def test_records_are_frozen():
    record = PairRecord("a", "v", "other", "q", "c", "r", "d", (0.0,), 1.0, 25.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.chosen = "other"


@pytest.mark.parametrize("junk", [b"", b"no record", bytes(range(256))])
def test_junk_is_not_a_record(junk):
    with pytest.raises(ValueError, match="not a pair record"):
        PairRecord.from_bytes(junk)
