"""Files of a run while the disk is full, and after it."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from tpo_jax.errors import InputError
from tpo_jax.training.files import Board, Lines
from tpo_jax.training.metrics import MetricsWriter

ROOT = Path(__file__).resolve().parents[2]


def steps_of(path) -> list[int]:
    """Return the steps with scalars in an event file, up to the first unreadable event."""
    content, found = path.read_bytes(), []
    while len(content) >= 12:
        (length,) = struct.unpack("<Q", content[:8])
        data, content = content[12 : 12 + length], content[16 + length :]
        if len(data) < length:
            break
        event = Event.FromString(data)
        found += [event.step] * (len(event.summary.value) > 0)
    return found


def test_lines_wait_for_a_full_disk_and_scalars_are_dropped(small_disk, capfd):
    lines = Lines(small_disk / "metrics.jsonl")
    board = Board(small_disk / "board", 0)

    def write(steps):
        for step in steps:
            lines.add({"step": step, "text": "x" * 1000})
            board.add(step, {"loss": float(step)})

    write(range(1, 4))
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)) == 4096:
            if (small_disk / "ballast").stat().st_size >= 1_740_000:
                break
    write(range(4, 200))
    error = capfd.readouterr().err
    assert error.count("No space left on device; training continues") == 2  # once for each
    (small_disk / "ballast").unlink()
    write(range(200, 203))
    lines.close()
    board.close()
    read = (small_disk / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in read] == list(range(1, 203))
    seen = sorted(s for path in (small_disk / "board").iterdir() for s in steps_of(path))
    assert {1, 2, 3, 200, 201, 202} <= set(seen) and len(seen) == len(set(seen)) < 202


def test_an_incomplete_line_is_cut_off(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    lines = Lines(path)
    lines.add({"step": 2})
    lines.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_damaged_metrics_are_named_and_not_changed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\ngarbage\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2: not JSON"):
        MetricsWriter(tmp_path, 1)
    assert "garbage" in path.read_text()
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"st')
    MetricsWriter(tmp_path, 1).close()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'


def test_scalars_are_written_without_importing_pytorch(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    script = (
        "import importlib.util, pathlib, sys\n"
        "from tpo_jax.training.files import Board\n"
        "board = Board(pathlib.Path(sys.argv[1]), 0)\n"
        "board.add(1, {'loss': 1.0})\n"
        "board.close()\n"
        "assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules\n"
        "assert importlib.util.find_spec('torch')  # hidden for that import only\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True)
    (file,) = tmp_path.iterdir()
    assert steps_of(file) == [1]
