"""Bad inputs by the thousand, through the commands.

    python -m tests.fuzz --inputs=20000 --seed=0 --output=docs/results/fuzz.md

Every call must end within ten seconds, with its work done or with one line that begins with
`error:` and exit code 2, and must write nowhere but to its output. What does not is kept in
`--keep`, listed, and makes the exit code 1.
"""

import argparse
import collections
import concurrent.futures
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tests.fuzz.kinds import KINDS, make_cache
from tests.fuzz.sandbox import SECONDS, Commands, complaint


class Tally(NamedTuple):
    """What became of the inputs of a kind."""

    inputs: int
    accepted: int  # calls that did their work
    refused: int  # calls that ended with one line of error
    found: list[str]  # where a call did neither, and how
    seconds: float  # the slowest call
    memory_mb: int  # the largest


def fuzz(
    name: str, count: int, seed: int, cache: Path, keep: Path, commands: Commands, progress=None
) -> Tally:
    """Try at least `count` inputs of a kind on its command; input `i` follows from kind, seed and
    `i` alone.
    """
    kind, found = KINDS[name], []
    codes: collections.Counter = collections.Counter()
    slowest, largest = 0.0, 0
    calls = -(-count // kind.inputs)
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(calls):
            rng = np.random.default_rng([seed, list(KINDS).index(name), i])
            folder = Path(scratch).resolve() / str(i)
            folder.mkdir()
            outcome = commands.call(kind.module, folder, kind.make(rng, cache, folder))
            codes[outcome.code] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory_mb)
            reason = complaint(outcome)
            if not reason and outcome.code == 0:
                reason = kind.check(folder, outcome.out)
            if reason:
                kept = keep / f"{name.replace(' ', '_')}-{seed}-{i}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept, symlinks=True)
                found.append(f"{name}, seed {seed}, call {i}: {reason}")
            shutil.rmtree(folder)
            if progress is not None:
                progress.update(kind.inputs)
    return Tally(calls * kind.inputs, codes[0], codes[2], found, slowest, largest)


def page(tallies: dict[str, Tally], seed: int, minutes: float, command: str) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Bad inputs",
        "",
        f"`{command}`: {sum(t.inputs for t in tallies.values()):,} inputs, seed {seed}, "
        f"{minutes:.0f} minutes on {os.cpu_count()} CPU cores that other programs used, too.",
        "Good files of every kind, one to eight",
        "changes each: bits flipped, numbers made extreme, pieces cut, doubled, zeroed or taken "
        "from other files, JSON values replaced by wild ones.",
        "A call is one run of a command in a process of its own; a call of `prepare` reads eight "
        "clips. Shards, subtitles, rows of benchmarks and pictures",
        "go through the readers of `train`, `evaluate` and `serve` alone "
        "(`tests/fuzz/entries.py`), without the model that these load first. Fields of configs "
        "come with a checkpoint",
        "that is not there: what is accepted ends at its absence.",
        "",
        f"Each must end within {SECONDS:.0f} s with its work done or with one line of error and "
        "exit code 2, must not die, print a traceback",
        "or take 3 GB, and must leave everything but its output as it was: every file opened for "
        "writing, made, renamed or removed",
        "from Python is watched by an audit hook, and the folder is compared afterwards.",
        "",
        "| input | inputs | calls that did their work | refused in one line | anything else | "
        "slowest, s | memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, t in tallies.items():
        lines.append(
            f"| {name} | {t.inputs} | {t.accepted} | {t.refused} | {len(t.found)} | "
            f"{t.seconds:.1f} | {t.memory_mb} |"
        )
    if found := [line for t in tallies.values() for line in t.found]:
        lines += ["", "What did neither:", "", *(f"- `{line}`" for line in found)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all kinds and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "tpo_jax_fuzz")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    start, names = time.monotonic(), given.kinds.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch).resolve() / "cache"
        make_cache(cache)
        whole = sum(KINDS[name].share for name in names)
        counts = {name: -(-given.inputs * KINDS[name].share // whole) for name in names}
        with (
            tqdm(total=sum(counts.values()), unit="input") as progress,
            concurrent.futures.ThreadPoolExecutor(given.jobs) as pool,
        ):

            def run(name: str) -> Tally:
                with Commands(KINDS[name].module) as commands:
                    return fuzz(
                        name, counts[name], given.seed, cache, given.keep, commands, progress
                    )

            futures = {name: pool.submit(run, name) for name in counts}
            tallies = {name: future.result() for name, future in futures.items()}
    command = f"python -m tests.fuzz --inputs={given.inputs} --seed={given.seed}"
    text = page(tallies, given.seed, (time.monotonic() - start) / 60, command)
    if given.output:
        given.output.write_text(text)
    print(text)
    found = [line for tally in tallies.values() for line in tally.found]
    print(*found, sep="\n", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
