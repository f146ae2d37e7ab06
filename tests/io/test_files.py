"""Files and directories appear whole, whatever ends a writer; JSON and JSON Lines."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tpo_jax.errors import InputError
from tpo_jax.io import files

LINES = [{"n": n, "text": "x" * 1000} for n in range(300)]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced_or_stays(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write("half")
        raise KeyError
    assert files.read_json(path) == {"b": 1, "a": [2]} and left_over(tmp_path) == ["a.json"]


WRITER = """
import json, sys
from pathlib import Path
from tpo_jax.io import files

lines = json.loads(sys.stdin.read())
while True:
    files.write_lines(Path(sys.argv[1]), lines)
"""


def test_several_writers_and_kills_leave_a_whole_file(tmp_path):
    path = tmp_path / "a.jsonl"
    files.write_lines(path, LINES)
    before = path.stat().st_ino
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for writer in writers:
        writer.stdin.write(json.dumps(LINES).encode())
        writer.stdin.close()
    while path.stat().st_ino == before:
        time.sleep(0.01)
    for writer in writers:
        for _ in range(10):
            assert [line for _, line in files.read_lines(path)] == LINES
        writer.kill()
        writer.wait()
    assert [line for _, line in files.read_lines(path)] == LINES


def test_directory_is_replaced_or_stays(tmp_path):
    path = tmp_path / "model"
    for text in ("one", "two"):
        with files.replacing_directory(path) as folder:
            assert left_over(folder) == []
            (folder / "file").write_text(text)
            (folder / "sub").mkdir()
    with pytest.raises(KeyError), files.replacing_directory(path) as folder:
        (folder / "file").write_text("three")
        raise KeyError
    assert (path / "file").read_text() == "two" and left_over(tmp_path) == ["model"]


def test_directory_that_a_kill_left_is_emptied(tmp_path):
    with files.replacing_directory(tmp_path / "model", leads=False) as folder:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text("half")
    with files.replacing_directory(tmp_path / "model") as folder:
        assert left_over(folder) == []
    assert left_over(tmp_path) == ["model"]


def test_two_runs_do_not_fill_one_directory(tmp_path):
    path = tmp_path / "model"
    with files.replacing_directory(path) as folder:
        (folder / "file").write_text("first")
        second = files.replacing_directory(path)
        with pytest.raises(InputError, match="another run is writing it"):
            second.__enter__()
    assert (path / "file").read_text() == "first"


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff", b"1" * 5000])
def test_invalid_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: cannot be read"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json:1: not JSON"):
        list(files.read_lines(tmp_path / "a.json"))


def test_json_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]\n")
    with pytest.raises(InputError, match="not a JSON object"):
        files.read_json_object(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json:1: not a JSON object"):
        list(files.read_lines(tmp_path / "a.json"))


def test_lines_of_a_growing_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a":')
    found = list(files.read_lines(path, growing=True))
    assert found == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]
