"""What a journal of stages knows after ends, failures and kills."""

import json
import os

import jax
import pytest

from tpo_jax.errors import InputError
from tpo_jax.training.stage_journal import open_journal

OWNER = {"reference": "last"}


def test_a_stage_is_done_once_and_all_of_its_starts_count(tmp_path):
    path, folder, calls = tmp_path / "rounds.jsonl", tmp_path / "round_1", []
    folder.mkdir()

    def fails():
        raise InputError("no pair is left")

    def run(work, number=1):
        with open_journal(path, OWNER) as journal:
            return journal.run(number, "curation", folder, work)

    with pytest.raises(InputError, match="no pair is left"):
        run(fails)
    assert run(lambda: None) is None  # asked to stop
    # A kill leaves a start and, later, the last file that was written.
    begun = {"round": 1, "stage": "curation", "begun": 1000.0, "devices": 2}
    with path.open("a") as file:
        file.write(json.dumps(begun) + "\n" + '{"round": 1, "sta')
    (folder / "deep").mkdir()
    (folder / "deep" / "answers.jsonl").touch()
    os.utime(folder / "deep" / "answers.jsonl", (1100.0, 1100.0))
    found = run(lambda: calls.append(1) or {"pairs": 3})
    assert found["pairs"] == 3 and found["starts"] == 4
    assert found["seconds"] == pytest.approx(100, abs=5)
    quick = found["seconds"] - 100
    expected = 2 * 100 + jax.device_count() * quick
    assert found["device seconds"] == pytest.approx(expected, abs=1)
    assert run(lambda: calls.append(1)) == found and len(calls) == 1
    assert run(lambda: {"pairs": 5}, number=2)["pairs"] == 5
    with (
        pytest.raises(InputError, match=r"reference 'last', not 'first'\); choose another --workd"),
        open_journal(path, {"reference": "first"}),
    ):
        pass


def test_two_runs_do_not_share_a_journal(tmp_path):
    path = tmp_path / "rounds.jsonl"
    with open_journal(path, OWNER), pytest.raises(InputError, match="another run is writing here"):
        open_journal(path, OWNER).__enter__()
