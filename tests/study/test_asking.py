"""Which frames each side of a pair is shown."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.study.asking import kept_segment, removed_segment, sparse


@given(st.integers(2, 64), st.data())
def test_kept_and_removed_are_the_two_parts_of_the_video(F, data):
    width = data.draw(st.integers(1, F))
    start = data.draw(st.floats(0, 90))
    segment = (start, start + data.draw(st.floats(0.1, 20)))
    times = np.linspace(0, 95, F)
    kept = kept_segment(times, segment, width)
    removed = removed_segment(times, segment, width)
    assert (np.diff(kept) == 1).all() and len(kept) == width
    assert sorted([*kept, *removed]) == list(range(F))


def test_the_segment_is_seen_when_kept_and_not_when_removed():
    times = np.arange(32) * 3.0
    for start in range(0, 84):
        inside = np.flatnonzero((times >= start) & (times < start + 10))
        assert set(inside) <= set(kept_segment(times, (start, start + 10), 8))
        assert not set(inside) & set(removed_segment(times, (start, start + 10), 8))


@given(st.integers(1, 200), st.data())
def test_sparse_frames_are_spread_evenly(F, data):
    kept = data.draw(st.integers(1, F))
    indices = sparse(F, kept)
    assert len(np.unique(indices)) == kept and indices.min() >= 0 and indices.max() < F
    assert kept == 1 or np.ptp(np.diff(indices)) <= 1
