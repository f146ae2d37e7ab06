"""A few hundred bad inputs; `python -m tests.fuzz` tries any number of them."""

import pytest

from tests.fuzz import mutate
from tests.fuzz.__main__ import fuzz
from tests.fuzz.kinds import KINDS, make_cache
from tests.fuzz.sandbox import Command


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "cache"
    make_cache(folder)
    return folder


@pytest.mark.parametrize("module", sorted({kind.module for kind in KINDS.values()}))
def test_a_bad_input_is_one_line_of_error_and_nothing_else_is_touched(module, cache, tmp_path):
    with Command(module) as command:
        for name, kind in KINDS.items():
            if kind.module == module:
                check(name, kind, cache, tmp_path, command)


def check(name, kind, cache, keep, command):
    """A handful of inputs of a kind."""
    tally = fuzz(name, max(8, kind.share // 10), 20, cache, keep, command)
    assert tally.found == []
    assert tally.accepted + tally.refused == tally.inputs // kind.inputs
    # Some are really bad; of eight clips one is always good enough.
    assert tally.refused or name == "videos"


def test_unmodified_archives_are_extracted(cache, tmp_path, monkeypatch):
    """Otherwise every fuzzed archive would be refused for its names alone."""
    monkeypatch.setattr(mutate, "data", lambda rng, original, other=b"": original)
    with Command("tpo_jax.prepare") as command:
        tally = fuzz("archives", 12, 0, cache, tmp_path, command)
    assert tally.found == [] and tally.accepted >= 8  # one of six archives is hostile
