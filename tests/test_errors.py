"""How commands report what is wrong with their flags."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tpo_jax.errors import LONGEST, printable

ROOT = Path(__file__).resolve().parents[1]


def test_help_is_on_standard_output_with_exit_code_0() -> None:
    command = [sys.executable, "-m", "tpo_jax.evaluate", "niah", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "evaluate niah --haystack" in shown.stdout and "--needles" in shown.stdout


@pytest.mark.parametrize("override", [{}, {"config.seed": "3"}])
def test_a_config_that_cannot_be_loaded_names_the_flag(tmp_path, override) -> None:
    (tmp_path / "empty.py").touch()
    (tmp_path / "opens.py").write_text("open('nowhere.txt')")
    expected = {
        "nowhere.py": "--config: No such file or directory: 'nowhere.py'",
        str(tmp_path): f"--config: Is a directory: {str(tmp_path)!r}",
        str(tmp_path / "empty.py"): "--config: the file has no function get_config",
        str(tmp_path / "opens.py"): "--config: No such file or directory: 'nowhere.txt'",
    }
    calls = [{"config": path, "workdir": tmp_path / "work", **override} for path in expected]
    for result, reason in zip(commands.call("curate", *calls), expected.values(), strict=True):
        assert (result.code, result.err) == (2, f"error: {reason}\n")
    assert not (tmp_path / "work").exists()


def test_an_error_is_one_line_of_bounded_length() -> None:
    shown = printable("a\nb\x1b[31m" + "c" * 10 * LONGEST)
    assert shown.isprintable() and shown.startswith("a\\nb\\x1b") and len(shown) < LONGEST + 10
