"""What is committed: no large binaries, no paths of somebody's machine, no dead links."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)(?:/|\b)")
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files git tracks."""
    command = ["git", "ls-files", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def test_no_large_file(tracked: list[Path]) -> None:
    large = {str(f.relative_to(ROOT)): f.stat().st_size for f in tracked}
    assert not {name: size for name, size in large.items() if size > 1 << 20}


def test_no_path_of_one_machine(tracked: list[Path]) -> None:
    found = []
    for file in tracked:
        data = file.read_bytes()
        if b"\0" in data:
            continue
        lines = data.decode("utf-8").splitlines()
        found += [f"{file}:{i}: {x}" for i, x in enumerate(lines, 1) if MACHINE_PATH.search(x)]
    assert not found


def anchors(file: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_relative_links_resolve(tracked: list[Path]) -> None:
    broken = []
    for file in tracked:
        if file.suffix != ".md":
            continue
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.S)
        for groups in LINK.findall(prose):
            target, _, anchor = (groups[0] or groups[1]).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            aim = (file.parent / target).resolve() if target else file
            found = aim in tracked or aim.is_dir()
            if found and anchor and aim.suffix == ".md":
                found = anchor in anchors(aim)
            if not found:
                broken.append(f"{file.relative_to(ROOT)}: {groups[0] or groups[1]}")
    assert not broken
