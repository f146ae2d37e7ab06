"""The convert command, and others on its output: a model answers alike in both layouts;
memory is bounded by a parameter; wrong input is one line and leaves nothing behind.
"""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.commands import ROOT, call
from tpo_jax import families
from tpo_jax.checkpoints.huggingface import weights
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.io.files import write_json
from tpo_jax.models.config import DecoderConfig
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

PAIRS = [
    {"id": "a", "video": "v0", "prompt": "What?", "chosen": "A ball", "rejected": "Nothing here"},
    {"id": "b", "video": "v1", "prompt": "<image>\nWho?", "chosen": "é", "rejected": "Nobody."},
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two videos, a list of pairs and a tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = [text for pair in PAIRS for text in pair.values()]
    save_tokenizer(train_tokenizer(texts, vocab_size=270), folder / "tokenizer")
    draws = np.random.default_rng(0)
    for name in ("v0", "v1"):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(6):
            frame = Image.fromarray(draws.integers(0, 256, (40, 32, 3), np.uint8))
            frame.save(folder / "videos" / name / f"{i}.png")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return folder


def write_source(directory, inputs, name="tiny_longva", dtype="bfloat16"):
    """A random checkpoint in the layout of the family, with a tokenizer."""
    directory.mkdir()
    config = families.preset(name)
    export_model(directory, config, families.init_params(config, 0), None, dtype)
    shutil.copy(inputs / "tokenizer" / "tokenizer.json", directory)
    (directory / "generation_config.json").write_text('{"repetition_penalty": 1.05}')


def tensors(directory):
    """(file, dtype, bytes) of every tensor by name."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(file, "numpy") as shard:
            for name in shard.keys():  # noqa: SIM118
                values = shard.get_tensor(name)
                found[name] = (file.name, values.dtype, values.shape, values.tobytes())
    return found


@pytest.mark.parametrize("family", ["tiny_longva", "tiny_llava_video"])
def test_one_model_in_two_layouts(family, inputs, tmp_path):
    source, native, back = (tmp_path / name for name in ("source", "native", "back"))
    write_source(source, inputs, family)
    there, home = call(
        "convert", {"input": source, "output": native}, {"input": native, "output": back}
    )
    assert (there.code, there.out) == (0, f"{native}\n"), there.err
    assert (home.code, home.out) == (0, f"{back}\n"), home.err
    original = tensors(source)
    assert tensors(back) == original
    assert original.keys() == weights(families.preset(family)).tensors.keys()
    for file in source.iterdir():
        assert (back / file.name).is_dir() or (back / file.name).read_bytes() == file.read_bytes()

    flags = {"pairs": inputs / "pairs.jsonl", "videos": inputs / "videos", "num_frames": 4}
    scores = [tmp_path / f"{name}.jsonl" for name in ("source", "native", "back")]
    results = call(
        "score",
        *(
            flags | {"checkpoint": path, "output": output}
            for path, output in zip((source, native, back), scores, strict=True)
        ),
    )
    assert [result.code for result in results] == [0, 0, 0], results[0].err
    assert scores[0].read_bytes() == scores[1].read_bytes() == scores[2].read_bytes()
    assert len(scores[0].read_text().splitlines()) == len(PAIRS)

    flags = {"video": inputs / "videos" / "v0", "num_frames": 4, "max_new_tokens": 12}
    one, several = {"prompt": ["What?"]}, {"prompt": ["What?", "Who is there?"]}
    results = call(
        "generate",
        *(
            flags | question | {"checkpoint": path}
            for question in (one, several)
            for path in (source, native, back)
        ),
    )
    assert [result.code for result in results] == [0] * 6, results
    for answers in (results[:3], results[3:]):
        assert answers[0].out == answers[1].out == answers[2].out
        assert answers[0].out.strip()


_PEAKS = """
import json, sys
from absl import flags
from tpo_jax import convert
from tpo_jax.errors import run_command

def now(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

peaks = []
for source, output in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    sys.argv = ["convert", f"--input={source}", f"--output={output}"]
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = now("VmRSS")
    try:
        run_command(convert.main)
    except SystemExit as end:
        assert not end.code, end.code
    peaks.append(now("VmHWM") - before)
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory through /proc")
def test_memory_is_bounded_by_a_parameter(inputs, tmp_path):
    """450 MB in four files: nine parameters of a ninth each, all layers of a name together."""
    decoder = DecoderConfig(
        vocab_size=12288,
        width=1024,
        layers=12,
        heads=16,
        kv_heads=16,
        head_dim=64,
        mlp_width=1024,
        rope_theta=1e6,
    )
    config = dataclasses.replace(families.preset("tiny_longva"), decoder=decoder)
    small, source = tmp_path / "small", tmp_path / "source"
    write_source(small, inputs)
    source.mkdir()
    shapes, draws = weights(config).tensors, np.random.default_rng(0).standard_normal(2**18)
    for i in range(4):
        part = {n: np.resize(draws.astype(np.float32), shapes[n]) for n in list(shapes)[i::4]}
        save_file(part, source / f"model-{i}.safetensors")
    made = families.of(config).layouts["original"].new_config(config, "float32")
    write_json(source / "config.json", made["config.json"])
    shutil.copytree(small / "vision_tower", source / "vision_tower")

    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    largest = 12 * 1024 * 1024 * 4
    native, back = tmp_path / "native", tmp_path / "back"
    pairs = [(small, tmp_path / "warm"), (tmp_path / "warm", tmp_path / "cold")]
    pairs += [(source, native), (native, back)]  # the first two load what is loaded late
    command = [sys.executable, "-c", _PEAKS, json.dumps([list(map(str, pair)) for pair in pairs])]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    _, _, there, home = json.loads(child.stdout.splitlines()[-1])
    assert there < 0.7 * total and home < 0.7 * total, (there, home, largest, total)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory, change):
    (file,) = directory.glob("*.safetensors")
    read = load_file(file)
    read = {name: values.copy() for name, values in read.items()}
    change(read)
    save_file(read, file)


def cut(file):
    file.write_bytes(file.read_bytes()[:-10])


def nan(read):
    read["model.norm.weight"][3] = np.nan


def truncate_array(directory):
    file = max((directory / "params").rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
MODEL = {"tower": {}, "decoder": {"width": "wide"}}
SOURCES = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "architecture": (
        lambda d: edit_json(
            d / "config.json", architectures=["LlamaForCausalLM"], mm_vision_tower=None
        ),
        "architectures is ['LlamaForCausalLM']",
    ),
    "truncated": (lambda d: cut(d / SHARD), "not a whole safetensors file"),
    "no file": (lambda d: (d / SHARD).unlink(), f"names {SHARD}, which does not exist"),
    "no tensors": (lambda d: [f.unlink() for f in d.glob("model*")], "no .safetensors files"),
    "missing": (lambda d: edit_tensors(d, lambda t: t.pop("model.norm.weight")), "norm.weight"),
    "nan": (lambda d: edit_tensors(d, nan), "model.norm.weight holds NaN"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "not a tokenizer"),
    "ids": (
        lambda d: (d / "added_tokens.json").write_text('{"<|im_end|>": 7}'),
        "the added tokens beside it say 7",
    ),
}
NATIVES = {
    "types": (lambda d: edit_json(d / "config.json", model=MODEL), "config.json"),
    "list": (lambda d: edit_json(d / "config.json", model=[1]), "config.json"),
    "version": (lambda d: edit_json(d / "config.json", version=9), "version 9"),
    "no params": (lambda d: shutil.rmtree(d / "params"), "no params/"),
    "truncated": (truncate_array, "params"),
    # What only an export needs:
    "kept": (lambda d: (d / "huggingface" / "layout.json").unlink(), "layout.json"),
}


def test_weights_without_a_tokenizer_are_converted_and_noted(inputs, tmp_path):
    write_source(tmp_path / "source", inputs)
    (tmp_path / "source" / "tokenizer.json").unlink()
    for before, after in (("source", "native"), ("native", "back")):
        (result,) = call("convert", {"input": tmp_path / before, "output": tmp_path / after})
        assert (result.code, result.out) == (0, f"{tmp_path / after}\n"), result.err
        assert f"note: {tmp_path / before} has no tokenizer files" in result.err
    assert tensors(tmp_path / "back") == tensors(tmp_path / "source")


@pytest.mark.parametrize("layout", ["source", "native"])
def test_wrong_models_are_one_line_and_leave_nothing(layout, inputs, tmp_path):
    write_source(tmp_path / "source", inputs, dtype="float32")
    if layout == "native":
        call("convert", {"input": tmp_path / "source", "output": tmp_path / "native"})
    cases = SOURCES if layout == "source" else NATIVES
    for name, (change, _) in cases.items():
        shutil.copytree(tmp_path / layout, tmp_path / name)
        change(tmp_path / name)
    before = set(tmp_path.iterdir())
    score = {"pairs": inputs / "pairs.jsonl", "videos": inputs / "videos", "num_frames": 2}
    question = {"video": inputs / "videos" / "v0", "prompt": "What?", "num_frames": 2}
    for command, model, flags in (
        ("convert", "input", {"output": tmp_path / "out"}),
        ("score", "checkpoint", score | {"output": tmp_path / "out"}),
        ("generate", "checkpoint", question | {"max_new_tokens": 1}),
    ):
        tried = [name for name in cases if command == "convert" or name != "kept"]
        results = call(command, *(flags | {model: tmp_path / name} for name in tried))
        for name, result in zip(tried, results, strict=True):
            assert (result.code, result.out) == (2, ""), (command, name, result)
            (line,) = result.err.splitlines()
            assert line.startswith("error: ") and cases[name][1] in line, (command, name)
        assert set(tmp_path.iterdir()) == before
