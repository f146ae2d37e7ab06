"""Time from the command to the first step of `train`, and what it is spent on.

    python benchmarks/startup.py [--width=1024] [--layers=12] [--repeats=3] [--output=FILE.md]

Each start is a process of its own, which trains one step of a model of random weights on the tiny
world of the tests. `one after the other` compiles the step when it is first called, as before;
`meanwhile` while the weights are read and the reference log-probabilities are computed; `kept` also
finds its programs on disk. Starts take turns, so that other load falls on all of them. On a CPU
programs are kept for this measurement only (`tpo_jax/parallel/programs.py`).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SPAWNED = time.time()

WAYS = ("one after the other", "meanwhile", "kept")
STARTS = ("first", "later")  # the reference is computed, or found beside the shards
PARTS = ("imports", "data", "weights", "reference", "step", "all")
HEAD = """# The start of training, measured

Seconds from the command to the end of the first step, medians of {repeats} starts of each kind in turn, on
{cores} CPU cores with a load of {load:.1f} at the start. Random weights, a decoder of {layers} layers of width {width},
float32. *first*: the reference log-probabilities are computed; *later*: they lie beside the shards.

- `one after the other`: the step is compiled when it is first called.
- `meanwhile`, as `train` does: it is compiled while the weights are read and the reference is computed. On
  a CPU compilation and reference share the cores; with an accelerator only the host compiles.
- `kept`: its programs are also found on disk, as with every start after the first on TPU and GPU.

Written by `python benchmarks/startup.py --width={width} --layers={layers} --repeats={repeats} --output=docs/results/startup.md`.

"""  # noqa: E501


def make_inputs(root: Path, width: int, layers: int) -> None:
    """Write the tiny world and a native model directory."""
    import dataclasses

    from tests.tiny_run import make_world
    from tpo_jax import families
    from tpo_jax.checkpoints.models import save_model

    make_world(root)
    tiny = families.preset("tiny_longva")
    heads = width // 64
    decoder = dataclasses.replace(
        tiny.decoder,
        vocab_size=8192,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=max(heads // 4, 1),
        head_dim=64,
        mlp_width=4 * width,
    )
    model = dataclasses.replace(tiny, decoder=decoder)
    save_model(root / "model", model, families.init_params(model, 0), root / "tokenizer")


def start_run(root: str, workdir: str, way: str) -> None:
    """Train one step and print the seconds of every part; runs in a process of its own."""
    import jax

    from tests.tiny_run import tiny_config
    from tpo_jax import train as command
    from tpo_jax.training import loop

    seconds = {"imports": time.time() - SPAWNED}

    def timed(name, function):
        def call(*arguments, **named):
            begin = time.time()
            result = jax.block_until_ready(function(*arguments, **named))
            seconds[name] = seconds.get(name, 0.0) + time.time() - begin
            return result

        return call

    if way == WAYS[0]:
        command.compile_meanwhile = lambda program, mesh, *calls: program
    opened = command.open_weights

    def open_weights(*arguments):
        begin = opened(*arguments)
        object.__setattr__(begin, "load", timed("weights", begin.load))
        return begin

    class Stepped(Exception):
        pass

    def one_step(config, step, state, batches, feed, *_):
        with jax.set_mesh(feed.mesh):
            timed("step", step)(state, feed.put(next(batches)))
        raise Stepped

    command.open_weights, loop.run = open_weights, one_step
    command.open_data = timed("data", command.open_data)
    command.make_feeds = timed("reference", command.make_feeds)
    config = tiny_config(Path(root))
    config.model.preset = config.model.tokenizer = ""
    config.model.checkpoint = str(Path(root) / "model")
    config.data.eval_shards, config.train.eval_every = "", 0
    try:
        command.train(config, Path(workdir))
    except Stepped:
        print(json.dumps(seconds | {"all": time.time() - SPAWNED}), flush=True)
        os._exit(0)


def measure(root: Path, way: str, start: str) -> dict[str, float]:
    """Return the seconds of one start."""
    workdir, cache = root / "run", root / "cache"
    if start == "first":
        for file in (root / "shards").glob("reference-*.npz"):
            file.unlink()
    child = [sys.executable, __file__, "--child", str(root), str(workdir), way]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if way == "kept" else {}
    # Measured as a user's command: nothing of a cache that this environment names.
    other = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        child, cwd=ROOT, env=other | kept, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    shutil.rmtree(workdir, ignore_errors=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(start, way, found, file=sys.stderr, flush=True)  # a start may take minutes
    return found


def main(_) -> None:
    """Measure all ways and print the page."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_inputs(root, WIDTH.value, LAYERS.value)
        measure(root, "kept", "first")  # fills the cache
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(REPEATS.value):
            for start in STARTS:
                for way in WAYS:
                    found.setdefault((start, way), []).append(measure(root, way, start))
    lines = [
        f"| start | way | {' | '.join(PARTS)} | of the first way |",
        "|" + " --- |" * (len(PARTS) + 3),
    ]
    for start in STARTS:
        before = statistics.median(x["all"] for x in found[start, WAYS[0]])
        for way in WAYS:
            runs = found[start, way]
            cells = [statistics.median(x.get(part, 0.0) for x in runs) for part in PARTS]
            shown = " | ".join(f"{cell:.1f}" for cell in cells)
            lines.append(f"| {start} | {way} | {shown} | {cells[-1] / before:.2f} |")
    head = HEAD.format(
        repeats=REPEATS.value,
        cores=os.cpu_count(),
        load=load,
        layers=LAYERS.value,
        width=WIDTH.value,
    )
    page = head + "\n".join(lines) + "\n"
    print(page)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        start_run(*sys.argv[2:])
    else:
        from absl import app, flags

        WIDTH = flags.DEFINE_integer("width", 1024, "Decoder width, a multiple of 64.", 64)
        LAYERS = flags.DEFINE_integer("layers", 12, "Decoder layers.", lower_bound=1)
        REPEATS = flags.DEFINE_integer("repeats", 3, "Starts of every kind.", lower_bound=1)
        OUTPUT = flags.DEFINE_string("output", None, "File for the page, besides standard output.")
        app.run(main)
