"""A few hundred bad inputs; `python -m tests.fuzz` tries any number of them."""

import pytest

from tests.fuzz import mutate
from tests.fuzz.__main__ import fuzz
from tests.fuzz.kinds import KINDS, make_cache
from tests.fuzz.sandbox import Commands

MODULES = sorted({kind.module for kind in KINDS.values()})


@pytest.fixture(scope="module")
def commands():
    with Commands(*MODULES) as commands:
        yield commands


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "cache"
    make_cache(folder)
    return folder


@pytest.mark.parametrize("module", MODULES)
def test_a_bad_input_is_one_line_of_error_and_nothing_else_is_touched(
    module, cache, tmp_path, commands
):
    for name, kind in KINDS.items():
        if kind.module == module:
            check(name, kind, cache, tmp_path, commands)


def check(name, kind, cache, keep, commands):
    """A handful of inputs of a kind."""
    tally = fuzz(name, max(8, kind.share // 10), 20, cache, keep, commands)
    assert tally.found == []
    assert tally.accepted + tally.refused == tally.inputs // kind.inputs
    # Some are really bad; of eight clips one is always good enough.
    assert tally.refused or name == "videos"


def test_unmodified_archives_are_extracted(cache, tmp_path, commands, monkeypatch):
    """Otherwise every fuzzed archive would be refused for its names alone."""
    monkeypatch.setattr(mutate, "data", lambda rng, original, other=b"": original)
    tally = fuzz("archives", 12, 0, cache, tmp_path, commands)
    assert tally.found == [] and tally.accepted >= 8  # one of six archives is hostile
