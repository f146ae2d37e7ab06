"""What the notebooks share: commands with their cost, and pairs held out."""

import json
import subprocess
import sys

import pytest

from tpo_jax.data.pairs import read_pairs as read_list
from tpo_jax.errors import InputError
from tpo_jax.study.notebook import hold_out, read_pairs, run_cell


@pytest.fixture
def listed(tmp_path):
    """A list of 24 pairs on 8 videos, of which 6 are there, in the layout of ms-swift."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.mp4").touch()
    record = lambda i: {  # noqa: E731
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"<video>What is it, {i}?"},
            {"role": "assistant", "content": "Yes."},
        ],
        "rejected_response": "No.",
        "videos": [f"{i % 8}.mp4"],
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(record(i)) for i in range(24)))
    return path, folder


def test_every_pair_with_a_video_is_on_one_side(listed, tmp_path, capsys):
    path, folder = listed
    pairs = read_pairs(path, folder)
    assert capsys.readouterr().out.startswith("18 pairs; left out: 6 whose video is not there, 0 ")
    hold_out(pairs, tmp_path / "work", share=0.3)
    train, held = (
        read_list(tmp_path / f"work/{name}.jsonl", videos=folder)[0]
        for name in ("train", "held_out")
    )
    assert {pair.video for pair in train}.isdisjoint(pair.video for pair in held)
    assert len({pair.video for pair in held}) == 2
    asked = lambda pair: (pair.asked, pair.answers, pair.video)  # noqa: E731
    assert sorted(map(asked, train + held)) == sorted(map(asked, pairs))


def test_one_video_cannot_be_held_out(listed, tmp_path):
    path, folder = listed
    one = [pair for pair in read_pairs(path, folder) if pair.video == "0.mp4"]
    with pytest.raises(InputError, match="pairs on 1 videos; two are needed"):
        hold_out(one, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_cell_says_what_it_printed_and_what_it_cost(capsys):
    hungry = f"{sys.executable} -c 'x = bytes(200_000_000)'"
    run_cell("both", f"echo result\necho progress >&2\n{hungry}")
    *lines, cost = capsys.readouterr().out.splitlines()
    assert lines == ["result", "progress"]
    assert cost.startswith("both: 0 min") and float(cost.split()[-5]) >= 0.2


def test_a_cell_ends_at_the_first_command_that_fails(capsys):
    with pytest.raises(subprocess.CalledProcessError, match="'train' returned .* 3"):
        run_cell("train", "(exit 3)\necho never")
    assert "never" not in capsys.readouterr().out
