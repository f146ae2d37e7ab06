"""Frame labels say what questions about a video say."""

import numpy as np

from tpo_jax.worlds.labels import SIZES, frame_labels
from tpo_jax.worlds.timeline import make_timeline


def test_labels_are_in_range_and_follow_the_timeline():
    for index in range(20):
        timeline = make_timeline(1, index, 96)
        labels = frame_labels(timeline, np.arange(96.0))
        assert labels.shape == (96, len(SIZES))
        assert (labels < np.array(SIZES)).all() and (labels >= -1).all()
        for event in timeline.events:
            seen = labels[event.start : event.end]
            wanted = (1, event.hue, event.shape, event.corner, event.motion)
            assert (seen[:, :5] == wanted).all()
            borders = {0} if event.border is None else {0, 1 + event.border}
            assert set(seen[:, 5].tolist()) == borders
        if needle := timeline.needle:
            seen = labels[needle.start : needle.end]
            wanted = (2, needle.hue, -1, needle.corner, -1, 0, needle.digit)
            assert (seen == wanted).all()
        empty = labels[:, 0] == 0
        assert (labels[empty][:, 1:5] == -1).all() and (labels[empty][:, 6:] == -1).all()
