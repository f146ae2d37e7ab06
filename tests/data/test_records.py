import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_jax.data.records import KINDS, PairRecord, Provenance

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


@settings(max_examples=50, deadline=None)
@given(records)
def test_round_trip_is_exact(record):
    assert PairRecord.from_bytes(record.to_bytes()) == record


def test_records_are_frozen():
    record = PairRecord("a", "v", "other", "q", "c", "r", "d", (0.0,), 1.0, 25.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.chosen = "other"


@pytest.mark.parametrize("junk", [b"", b"no record", bytes(range(256))])
def test_junk_is_not_a_record(junk):
    with pytest.raises(ValueError, match="not a pair record"):
        PairRecord.from_bytes(junk)
