"""Run the parity tests and write what they measured to docs/results/parity.md.

python tests/parity_table.py
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "results" / "parity.md"
FILES = (
    "families/llava_qwen/test_parity.py",
    "families/llava_qwen/test_onevision.py",
    "models/test_decoder.py",
    "families/qwen_vl/test_vision.py",
    "families/qwen_vl/test_parity.py",
)
HEAD = """# Parity with the PyTorch originals

float32 on CPU, highest matmul precision, random weights. Towers and decoder are those of
`transformers` {transformers} under PyTorch {torch}; the connector is
reimplemented in `tests/originals.py`. LLaVA-OneVision is `transformers`'
`LlavaOnevisionForConditionalGeneration`, connector included, and Qwen3-VL is its
`Qwen3VLForConditionalGeneration`; the decoders of Qwen3-VL and Qwen2.5-VL are also compared with
its text models of these names. Configurations are tiny and irregular: three query heads per
key/value head, head sizes 6, 9 and 10, 27x27 patches that do not cover the frame. Differences are
maxima of absolute values; for gradients, of the worst tensor, the norm of the difference over the
norm.

Written by `python tests/parity_table.py`.

| module | shape | largest difference | bar |
|---|---|---|---|
"""


class Collector:
    """Gathers what the tests attach to their reports."""

    def __init__(self):
        self.rows = []
        self.notes = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            for name, value in report.user_properties:
                {"parity": self.rows, "note": self.notes}[name].append(value)


def main() -> int:
    collector = Collector()
    status = pytest.main([*(str(ROOT / "tests" / file) for file in FILES), "-q"], [collector])
    if status != 0 or not collector.rows:
        print("parity tests did not pass; the table is left as it is", file=sys.stderr)
        return status or 1
    import torch
    import transformers

    lines = [
        f"| {what} | {shape or 'scalar'} | {difference:.1e} | {bar:.0e} |"
        for what, shape, difference, bar in collector.rows
    ]
    text = HEAD.format(torch=torch.__version__, transformers=transformers.__version__)
    text += "\n".join(lines) + "\n\n" + "".join(f"- {note}.\n" for note in collector.notes)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(text, encoding="utf-8")
    print(TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
