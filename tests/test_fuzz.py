"""A few hundred bad inputs; `python -m tests.fuzz` tries as many as one likes."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.kinds import KINDS, make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "cache"
    make_cache(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_input_is_one_line_of_error_and_nothing_else_is_touched(name, cache, tmp_path):
    tally = fuzz(name, max(8, KINDS[name].share // 5), seed=20, cache=cache, keep=tmp_path)
    assert tally.found == []
    assert tally.accepted + tally.refused == tally.inputs // KINDS[name].inputs
    # One of them is really bad.
    assert tally.refused or name == "videos"
