"""Run the parity tests and write what they measured to docs/results/parity.md.

python tests/parity_table.py            # all sections of the page
python tests/parity_table.py Qwen3-VL   # one of them; the others stay as they are
"""

import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "results" / "parity.md"
# Files of tests by section.
SECTIONS = {
    "LongVA, LLaVA-Video and LLaVA-OneVision": (
        "families/llava_qwen/test_parity.py",
        "families/llava_qwen/test_onevision.py",
    ),
    "Qwen3-VL": (
        "models/test_decoder.py",
        "families/qwen_vl/test_vision.py",
        "families/qwen_vl/test_parity.py",
    ),
}
TABLE = "| module | shape | largest difference | bar |\n|---|---|---|---|\n"


class Collector:
    """Gathers what the tests attach to their reports; other tests are left out."""

    def __init__(self):
        self.rows = []
        self.notes = []

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if "record_property" in item.fixturenames]

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            for name, value in report.user_properties:
                {"parity": self.rows, "note": self.notes}[name].append(value)


def measured(files) -> str:
    """Run a section's tests and return its text; nothing if one of them fails."""
    collector = Collector()
    status = pytest.main([*(str(TESTS / file) for file in files), "-q"], [collector])
    if status != 0 or not collector.rows:
        return ""
    import torch
    import transformers

    versions = f"`transformers` {transformers.__version__}, PyTorch {torch.__version__}."
    rows = "".join(
        f"| {what} | {shape or 'scalar'} | {difference:.1e} | {bar:.0e} |\n"
        for what, shape, difference, bar in collector.rows
    )
    notes = "".join(f"- {note}.\n" for note in collector.notes)
    return f"{versions}\n\n{TABLE}{rows}\n{notes}".strip() + "\n"


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    for title in sys.argv[1:] or SECTIONS:
        if not (text := measured(SECTIONS[title])):
            print(f"{title}: a parity test failed; the page is left as it is", file=sys.stderr)
            return 1
        section = re.compile(rf"(?<=^## {title}\n\n).*?(?=\n## |\Z)", re.MULTILINE | re.DOTALL)
        page, found = section.subn(lambda _, text=text: text, page)
        assert found == 1, f"{PAGE} has no section {title!r}"
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
