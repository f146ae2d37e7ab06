"""The docs stay true: their commands parse, and are run by a test or say what they need first.

Every block of shell in README.md and docs/ stands behind one of these lines (comments, which a
reader does not see):

    <!-- run by tests/test_docs.py -->          executed here, block after block of a page in one
                                                directory; see `reader`
    <!-- run by tests/test_a.py, .ci/run -->    those files run its commands, at their own sizes
    <!-- needs: weights, tpu -->                nothing can run it here; names in NEEDS

Flags, config files and config fields of every command are checked either way.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
HERE = "tests/test_docs.py"
NEEDS = {"tpu", "weights", "data", "cloud", "endpoint", "libtpu", "package"}
FENCE = re.compile(
    r"^(?:<!-- (?P<marker>.*?) -->\n+)?(?P<fence>```+)(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
PARSE = """
import contextlib, io, json, runpy, sys
from absl import app, flags
from tpo_jax import errors

real = errors.run_command
errors.run_command = lambda main: real(
    {name: command._replace(main=int) for name, command in main.items()}
    if isinstance(main, dict)
    else int
)
app.define_help_flags()
known, complaints = set(flags.FLAGS), []
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # another command imported it
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_module(module, run_name="__main__")
        except ImportError as error:
            said.write(str(error))
        except SystemExit:
            pass
    complaints.append(said.getvalue().strip())
    # Every command is its own program: two may define a flag of the same name.
    for flag in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, flag)
print(json.dumps(complaints))
"""


class Block(NamedTuple):
    """A block of shell on a page."""

    place: str  # page:line
    marker: str
    text: str

    @property
    def runners(self) -> list[str]:
        """The files that its marker says run it."""
        return re.split(r", *", self.marker[7:]) if self.marker.startswith("run by ") else []

    @property
    def commands(self) -> list[list[str]]:
        """Words of every command, without what is set in front of it."""
        text = re.sub(r"(^|\s)# .*", r"\1", self.text.replace("\\\n", " "), flags=re.MULTILINE)
        lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        found, words = [], []
        for word in [*lexer, ";"]:
            if set(word) <= set(lexer.punctuation_chars):
                found += [words] if words else []
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
        return found

    @property
    def calls(self) -> list[list[str]]:
        """Module and arguments of every `python -m tpo_jax.…`, on this machine or on a TPU."""
        found = []
        for words in self.commands:
            if re.fullmatch(r"python[\d.]*", Path(words[0]).name) and words[1:2] == ["-m"]:
                found += [words[2:]] if words[2].startswith("tpo_jax") else []
            elif words[:2] == ["bash", "launch/tpu_run.sh"] and "--" in words:
                command, *arguments = words[words.index("--") + 1 :]
                # The launcher mounts buckets and passes the paths below the mounts (docs/tpu.md).
                arguments = [word.replace("gs://", "/mnt/gcs/") for word in arguments]
                found.append([f"tpo_jax.{command}", *arguments])
        return found

    @property
    def scripts(self) -> list[list[str]]:
        """Every `bash launch/…`."""
        return [
            words
            for words in self.commands
            if words[0] == "bash" and words[1].startswith("launch/")
        ]


def fences(page: str) -> list[tuple[str, re.Match]]:
    """The fenced blocks of a page with their places."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (f"{page}:{text.count(chr(10), 0, found.start('fence')) + 1}", found)
        for found in FENCE.finditer(text)
    ]


def blocks(page: str) -> list[Block]:
    return [
        Block(place, found["marker"] or "", found["text"])
        for place, found in fences(page)
        if found["language"] == "bash"
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
EXECUTED = [page for page in PAGES if any(HERE in block.runners for block in blocks(page))]


def test_commands_are_in_bash_blocks():
    wrong = [
        f"{place}: write ```bash, so that its commands are checked"
        for page in PAGES
        for place, found in fences(page)
        if found["language"] != "bash"
        and re.search(r"python -m tpo_jax|bash launch/", found["text"])
    ]
    assert not wrong


def test_the_readme_links_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page for page in PAGES[1:] if f"({page})" not in text], "add them to its last table"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_is_run_or_says_what_it_needs(block: Block):
    help = (
        f"put one of these before the block: <!-- run by {HERE} -->, <!-- run by tests/FILE.py "
        f"-->, <!-- needs: … --> with {', '.join(sorted(NEEDS))}"
    )
    assert block.marker, f"{block.place}: {help}"
    if block.marker.startswith("needs: "):
        unknown = set(re.split(r", *", block.marker[7:])) - NEEDS
        assert not unknown, f"{block.place}: unknown {unknown}; {help}"
        return
    assert block.runners, f"{block.place}: '{block.marker}' is no marker; {help}"
    if HERE in block.runners:
        return
    for name in block.runners:
        assert (ROOT / name).is_file(), f"{block.place}: no such file {name}"
    texts = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in block.runners)
    for module, *_ in block.calls:
        name = module.removeprefix("tpo_jax.")
        assert re.search(rf"\b{name}\b", texts), f"{block.place}: {block.runners} never run {name}"
    for _, script, *_ in block.scripts:
        assert script in texts, f"{block.place}: {block.runners} never run {script}"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_is_shell(block: Block):
    found = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert found.returncode == 0, f"{block.place}: {found.stderr}"
    for _, script, *_ in block.scripts:
        assert (ROOT / script).is_file(), f"{block.place}: no such file {script}"


def test_every_command_takes_its_flags():
    given = [(block.place, call) for block in BLOCKS for call in block.calls]
    assert len(given) > 30
    wrong = ["--config=configs/tiny.py", "--workdir=a", "--config.data.shard=b"]
    calls = json.dumps([*(call for _, call in given), ["tpo_jax.train", *wrong]])
    child = subprocess.run(
        [sys.executable, "-c", PARSE, calls], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    *complaints, expected = json.loads(child.stdout)
    assert "no such field: shard; did you mean shards?" in expected
    for (place, call), complaint in zip(given, complaints, strict=True):
        assert not complaint, f"{place}: {shlex.join(call)}: {complaint}"


def test_the_launcher_takes_its_flags():
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout: the launcher sends a commit")
    for block in BLOCKS:
        for _, script, *arguments in block.scripts:
            if script != "launch/tpu_run.sh":
                continue
            command = ["bash", script, "--dry_run", *arguments]
            found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert found.returncode == 0, f"{block.place}: {found.stderr}"


@pytest.fixture
def reader(tiny_world: Path, tmp_path: Path) -> Path:
    """A checkout as a reader has it, after the quickstart, with videos and pairs of their own."""
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("videos", "pairs.jsonl"):
        (tmp_path / name).symlink_to(tiny_world / name)
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart/tokenizer").symlink_to(tiny_world / "tokenizer")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("# the interpreter of the tests\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED)
def test_a_page_can_be_followed(page: str, reader: Path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    for block in blocks(page):
        if HERE not in block.runners:
            continue
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        found = subprocess.run(command, cwd=reader, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, f"{block.place}: {found.stderr[-2000:]}"


PUT_IN = re.compile(r"\$\((?:[^()]|\([^()]*\))*\)|\$\{[^}]*\}+|\$\w+")


def said() -> str:
    """Every text of the package and its scripts, `…` for what is put in, one by line."""
    texts = []
    for path in (ROOT / "tpo_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for path in (ROOT / "launch").glob("*.sh"):
        texts.append(PUT_IN.sub("…", path.read_text(encoding="utf-8")))
    return "\n".join(texts)


def test_quoted_messages_exist():
    everything = said()
    quoted = [
        (place, found["text"].strip())
        for place, found in fences("docs/troubleshooting.md")
        if found["language"] == "text"
    ]
    assert len(quoted) > 20
    for place, message in quoted:
        assert message in everything, f"{place}: nothing says {message!r} (any more)"


def test_figures_of_memory_are_those_of_the_plans():
    def rows(page: str, kind: str) -> list[list[str]]:
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        return [re.split(r" *\| *", x.strip("| ")) for x in lines if re.match(rf"\| {kind} ", x)]

    names = {
        "LLaVA-OneVision-0.5B": "llava_onevision_0.5b",
        "LLaVA-OneVision-7B": "llava_onevision_7b",
        "LLaVA-Video-7B": "llava_video_7b",
        "LongVA-7B": "longva_7b",
    }
    told = [
        (names[model], frames, mesh, prefix, peak)
        for model, frames, prefix, _, mesh, peak in rows(
            "docs/memory_and_speed.md", rf"({'|'.join(names)})"
        )
    ]
    compiled = rows("docs/results/plan.md", rf"({'|'.join(names.values())})")
    assert told == [(row[0], row[2], row[4], row[5], row[7]) for row in compiled]
