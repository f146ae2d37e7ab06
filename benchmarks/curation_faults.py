"""Curation of real clips: by a tiny local model with random weights, in all roles and as answerer
and judge alone, and by an endpoint that fails, while the command is killed and started again.

    python benchmarks/curation_faults.py [--media=../shared/media] [--kills=10] [--seed=7] \
        [--output=FILE.md]

The endpoint is the one of the tests: three in ten replies are a timeout, 429, 500, a page in HTML,
cut JSON or a broken connection. The command is a process of its own and killed with SIGKILL after a
random number of requests. Exits with 1 where the pairs are not those of an undisturbed run.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.curation.fake_endpoint import FAULTS, serve
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.curation.config import base
from tpo_jax.data.shards import open_shards
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer, world_texts

ROOT = Path(__file__).resolve().parents[1]
MEDIA = flags.DEFINE_string("media", str(ROOT.parent / "shared/media"), "Folder of clips.")
KILLS = flags.DEFINE_integer("kills", 10, "How often the command is killed.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 7, "Of faults and kills.")
OUTPUT = flags.DEFINE_string("output", None, "File for the text, besides standard output.")
SHARE = 0.3  # of replies that are faults
STAGES = ("videos", "segments", "captions", "questions", "answers", "judged")


def config_of(backend: str) -> ConfigDict:
    """Return the config with one back end in all roles."""
    config = base()
    config.videos.folder = MEDIA.value
    config.segments.localized = config.segments.comprehensive = 6
    config.segments.min_seconds = 1.0
    config.questions.per_segment = 3
    config.shards.num_frames, config.shards.workers = 8, 1
    for name in ("captioner", "questioner", "answerer", "judge"):
        config[name].backend, config[name].num_frames = backend, 4
        config[name].max_new_tokens = 32
    config.answers.comprehensive_rejected = ("sparse:2", "shuffle:4", "other")
    config.openai.model, config.openai.key_variable = "fake", "FAKE_KEY"
    config.openai.image_size, config.openai.backoff = 64, 0.01
    config.openai.timeout, config.openai.retries = 0.8, 12
    config.openai.price_in, config.openai.price_out = 0.15, 0.60
    return config


def start(config: ConfigDict, workdir: Path) -> subprocess.Popen:
    """Start the command."""
    file = workdir.with_suffix(".py")
    file.write_text(
        "import json\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n",
        encoding="utf-8",
    )
    return subprocess.Popen(
        [sys.executable, "-m", "tpo_jax.curate", f"--config={file}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"FAKE_KEY": "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(path: Path) -> str:
    """Return the beginning of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def yields(workdir: Path) -> list[str]:
    """Return a table of what became of the units of every stage."""
    lines = ["| stage | units | items | dropped | failed |", "|---|---|---|---|---|"]
    for stage in STAGES:
        text = (workdir / f"{stage}.jsonl").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines()[1:]]
        counts = [len(found), sum(len(f.get("items", ())) for f in found)]
        counts += [sum(name in f for f in found) for name in ("dropped", "set_aside")]
        lines.append(f"| {stage} | " + " | ".join(map(str, counts)) + " |")
    return lines


def local(root: Path) -> list[str]:
    """Run with random weights in all roles, and with an endpoint that captions and asks."""
    tiny = families.preset("tiny_longva")
    save_tokenizer(train_tokenizer(world_texts(0, 20), vocab_size=400), root / "tokenizer")
    save_model(root / "model", tiny, families.init_params(tiny, SEED.value), root / "tokenizer")
    config = config_of("local")
    config.local.checkpoint, config.local.dtype = str(root / "model"), "float32"
    config.segments.localized = config.segments.comprehensive = 3
    lines = thrown_out(config, root / "local", "in every role")
    with serve() as endpoint:
        config.openai.url = endpoint.url
        config.captioner.backend = config.questioner.backend = "openai"
        config.questioner.num_frames = 0
        lines += ["", *thrown_out(config, root / "mixed", "as answerer and judge")]
    return lines


def thrown_out(config: ConfigDict, workdir: Path, roles: str) -> list[str]:
    """Run a curation that ends without a pair."""
    begin = time.perf_counter()
    child = start(config, workdir)
    _, said = child.communicate()
    seconds = time.perf_counter() - begin
    assert child.returncode == 2 and not (workdir / "pairs.jsonl").exists(), said
    last = said.strip().splitlines()[-1].replace(f"{workdir}", "DIR")
    last = last.replace(MEDIA.value, "../shared/media")
    return [
        f"Tiny model, random weights, {roles}: {seconds:.0f} seconds, exit code 2, no pair.",
        "",
        *yields(workdir),
        "",
        f"    {last}",
    ]


def faulty(root: Path) -> tuple[list[str], bool]:
    """Compare an undisturbed with a disturbed run; return whether they end in the same."""
    rng = random.Random(SEED.value)
    config = config_of("openai")
    config.questioner.num_frames = config.judge.num_frames = 0
    with serve() as endpoint:
        config.openai.url = endpoint.url
        child = start(config, root / "calm")
        _, said = child.communicate()
        assert child.returncode == 0, said
        calm, faults = endpoint.calls, Counter[str]()

        def fault(call: int, key: str) -> str:
            name = rng.choice(FAULTS) if rng.random() < SHARE else ""
            faults[name] += 1
            return name

        endpoint.fault, endpoint.calls = fault, 0
        moments: list[str] = []
        while True:
            child = start(config, root / "torn")
            at = endpoint.calls + rng.randint(1, 2 * calm // (KILLS.value + 1))
            while child.poll() is None and (len(moments) == KILLS.value or endpoint.calls < at):
                time.sleep(0.001)
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
                child.communicate()
                there = [s for s in STAGES if (root / f"torn/{s}.jsonl").exists()]
                moments.append(f"{there[-1]} ({endpoint.calls})")
                continue
            _, said = child.communicate()
            assert child.returncode == 0, said
            break
    names = ("pairs.jsonl", "set_aside.jsonl", "README.md")
    files = [(name, digest(root / "calm" / name), digest(root / "torn" / name)) for name in names]
    shards = [open_shards(root / run / "shards").fingerprint[:12] for run in ("calm", "torn")]
    files.append(("shards", *shards))
    same = all(one == other for _, one, other in files)
    count = len((root / "torn/pairs.jsonl").read_text(encoding="utf-8").splitlines())
    kinds = ", ".join(f"{faults[name]} {name}" for name in FAULTS)
    return [
        f"Endpoint with faults, seed {SEED.value}: {calm} requests undisturbed, {endpoint.calls} "
        f"with {len(moments)} kills, of which {sum(faults[f] for f in FAULTS)} got "
        f"a fault ({kinds}).",
        "",
        f"Killed in the stage (after requests): {', '.join(moments)}.",
        "",
        *yields(root / "torn"),
        "",
        f"{count} pairs. The same as undisturbed: {'yes' if same else 'NO'}.",
        "",
        "| file | undisturbed, SHA-256 | faults and kills |",
        "|---|---|---|",
        *(f"| {name} | {one} | {other} |" for name, one, other in files),
    ], same


def main(_) -> None:
    """Run everything and print it."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        lines, same = faulty(Path(name))
        lines = [*local(Path(name)), "", *lines]
    text = "\n".join(lines) + "\n"
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")
    print(text)
    sys.exit(not same)


if __name__ == "__main__":
    app.run(main)
