"""Which frames each view shows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.curation.views import MAGNITUDES, VIEWS, View, parse

NAMES = [
    *("full", "segment", "rest", "irrelevant", "other", "sparse:2", "sparse:8"),
    *(f"{name}:{r}" for name in ("drop", "shuffle", "reverse") for r in MAGNITUDES),
]


@given(st.sampled_from(NAMES), st.integers(8, 200), st.integers(1, 40), st.data())
def test_views_show_no_frame_twice(name, n, num_frames, data):
    times = np.arange(n) / 2
    start = data.draw(st.floats(0, n / 4))
    segment = (start, start + data.draw(st.floats(1, n / 8)))
    view = View(name, num_frames, segment, data.draw(st.integers(0, 9)))
    shown = view.indices(times)
    assert 0 < len(shown) <= num_frames and len(np.unique(shown)) == len(shown)
    assert shown.min() >= 0 and shown.max() < n
    np.testing.assert_array_equal(shown, view.indices(times))
    bare = name.partition(":")[0]
    inside = (times[shown] >= segment[0]) & (times[shown] < segment[1])
    if bare == "segment":
        assert inside.all()
    if bare in ("rest", "irrelevant"):
        assert not inside.any()
    if bare not in ("shuffle", "reverse"):
        assert (np.diff(shown) > 0).all()
    full = View("full", num_frames).indices(times)
    if bare in ("drop", "sparse", "shuffle", "reverse", "other"):
        assert set(shown) <= set(full)
    if bare in ("shuffle", "reverse", "other"):
        assert len(shown) == len(full)
    if bare in ("shuffle", "reverse") and len(full) > 1:
        assert (np.diff(shown) < 0).any()


def test_only_random_views_depend_on_the_seed():
    times = np.arange(200.0)
    for name in NAMES:
        shown = {View(name, 32, (20.0, 60.0), s).indices(times).tobytes() for s in range(8)}
        drawn = name.partition(":")[0] in ("irrelevant", "drop", "shuffle")
        assert (len(shown) > 1) == (drawn and name != "shuffle:2")  # two parts, one wrong order


@pytest.mark.parametrize("name", ["", "all", "sparse", "sparse:1", "drop", "drop:3", "full:2"])
def test_unknown_views_are_named(name):
    with pytest.raises(ValueError, match="view"):
        parse(name)


def test_views_that_leave_no_frame_are_errors():
    times = np.arange(10.0)
    with pytest.raises(ValueError, match="needs a segment"):
        View("rest", 4).indices(times)
    with pytest.raises(ValueError, match="leaves no frame"):
        View("rest", 4, (0.0, 20.0)).indices(times)
    assert set(VIEWS) == {name.partition(":")[0] for name in NAMES}
