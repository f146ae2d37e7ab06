"""A journal keeps whole lines of its owner, for one process at a time."""

import errno
import io

import pytest

from tpo_jax.errors import InputError
from tpo_jax.io.journal import Journal, cut_torn_line

OWNER = {"weights": "abc", "frames": 32}


def opened(path, owner=OWNER):
    return Journal(path, owner, "choose another one")


@pytest.mark.parametrize("tail", [b"", b'{"a": 3', b"\xff" * 200_000, b'{"a": 3}'])
def test_resumes_behind_the_last_whole_line(tmp_path, tail):
    path = tmp_path / "a.jsonl"
    with opened(path) as journal:
        journal.add([{"a": 1}, {"a": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with opened(path) as journal:
        assert [line for _, line in journal.lines] == [{"a": 1}, {"a": 2}]
        assert path.read_bytes() == whole
        journal.add([{"a": 4}])
    assert path.read_bytes() == whole + b'{"a": 4}\n'


def test_other_owner_is_named_and_nothing_is_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    opened(path).__exit__()
    content = path.read_bytes() + b'{"a"'
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"frames 32, not 16\); choose another one"):
        opened(path, OWNER | {"frames": 16})
    assert path.read_bytes() == content


def test_one_process_at_a_time(tmp_path):
    first = opened(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="another run is writing here"):
        opened(tmp_path / "a.jsonl")
    first.__exit__()
    opened(tmp_path / "a.jsonl").__exit__()


def test_a_file_system_without_locks_keeps_a_journal(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with opened(tmp_path / "a.jsonl") as journal:
        journal.add([{"a": 1}])
    with opened(tmp_path / "a.jsonl") as journal:
        assert [line for _, line in journal.lines] == [{"a": 1}]


def test_a_blank_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="does not say whose results"):
        opened(tmp_path / "a.jsonl")


@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 3 << 16])
@pytest.mark.parametrize("tail", [b"", b"x", b"x" * (1 << 17)])
def test_only_the_torn_line_is_cut(size, tail):
    whole = b"y" * (size - 1) + b"\n" if size else b""
    file = io.BytesIO(whole + tail)
    cut_torn_line(file)
    assert file.getvalue() == whole and file.tell() == len(whole)
