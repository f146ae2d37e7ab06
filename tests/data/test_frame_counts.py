import re

import numpy as np
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from tests.config_files import FOLDER
from tpo_jax.data.frame_counts import frame_counts
from tpo_jax.errors import InputError
from tpo_jax.training.experiment import read

COUNTS = st.lists(st.integers(1, 4096), min_size=1, max_size=5, unique=True)
WEIGHTS = st.lists(st.just(0.0) | st.floats(0.01, 100), min_size=5, max_size=5)


@given(COUNTS, WEIGHTS, st.integers(0, 2**32))
def test_batches_have_the_numbers_in_their_shares(counts, weights, seed):
    weights = weights[: len(counts)]
    if not any(weights):
        weights = ()
    frames = frame_counts(tuple(counts), weights)
    drawn = [frames.drawn(seed, k) for k in range(400)]
    assert drawn[7::31] == [frames.drawn(seed, k) for k in range(7, 400, 31)]  # of seed and k alone
    for count, share in zip(counts, frames.shares, strict=True):
        # Six standard deviations, and one for shares of nearly 0.
        spread = 6 * np.sqrt(400 * share * (1 - share)) + 1
        assert abs(drawn.count(count) - 400 * share) <= spread * (share > 0)
    assert sum(frames.shares) == pytest.approx(1)


def test_seeds_draw_differently():
    frames = frame_counts((8, 16), ())
    assert len({tuple(frames.drawn(s, k) for k in range(64)) for s in range(20)}) == 20


@pytest.mark.parametrize(
    ("flag", "expected", "most"),
    [
        ("48", 48, 48),
        ("16,64,32", (16, 64, 32), 64),
        ("(16,32)", (16, 32), 32),
        ("[16,32]", (16, 32), 32),
    ],
)
def test_one_flag_takes_one_number_or_several(flag, expected, most):
    config = _parsed(f"--config.data.num_frames={flag}")
    config.data.num_frames_weights = ()
    data = read(config).data
    assert (data.num_frames, data.frames.most) == (expected, most)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["num_frames=0"], "data.num_frames=0 must be at least 1, a whole number or several"),
        (["num_frames=16,-2"], "data.num_frames=16,-2 must be at least 1"),
        (["num_frames=many"], "data.num_frames=many must be at least 1, a whole number or"),
        (["num_frames=2.5"], "data.num_frames=2.5 must be at least 1, a whole number or"),
        (["num_frames=()"], "data.num_frames= must be at least 1"),
        (["num_frames=16,32,16"], "data.num_frames=16,32,16: 16 is there twice"),
        (
            ["num_frames=16,32", "num_frames_weights=1,2,3"],
            "weights=1,2,3: not as many weights as in data.num_frames=16,32",
        ),
        (["num_frames_weights=1,2"], "_weights=1,2: not as many weights as in data"),
        (
            ["num_frames=16,32", "num_frames_weights=1,-1"],
            "data.num_frames_weights=1,-1 must be numbers of at least 0, one of them above 0",
        ),
        (
            ["num_frames=16,32", "num_frames_weights=0,0"],
            "=0,0 must be numbers of at least 0, one of",
        ),
        (["num_frames=16,32", "num_frames_weights=('a','b')"], "weights=a,b must be numbers of at"),
        (
            ["num_frames=16,32", "reference=a.npz"],
            "data.reference=a.npz is for one directory and one",
        ),
    ],
)
def test_wrong_numbers_and_weights_are_one_line(given, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(_parsed(*[f"--config.data.{flag}" for flag in given]))
    assert "\n" not in str(error.value)


def _parsed(*arguments):
    """The config of a command with these flags."""
    values = flags.FlagValues()
    command = ["train", f"--config={FOLDER}/tiny.py", *arguments]
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    values(command)
    return config.value
