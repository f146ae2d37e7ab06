"""The kinds of input: what good ones look like, how a bad one is made, which command reads it."""

import dataclasses
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import yaml
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from tests.evaluation.agreement import generate, make_docs
from tests.evaluation.folders import make_folders
from tests.fuzz import mutate
from tests.video import clips
from tpo_jax import families
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.data import preparation, shards
from tpo_jax.evaluation.verdicts import ERAS
from tpo_jax.training.experiment import base
from tpo_jax.video import sampling
from tpo_jax.video.decode import probe
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8  # videos of one call
_SMALL = ("constant.mp4", "one.mp4", "variable.webm", "jpeg.avi")
PAIRS = [
    {
        "id": f"p{i}",
        "video": _SMALL[i % 2 * 2],
        "prompt": "Who comes first?",
        "chosen": "A red circle.",
        "rejected": "A blue cross.",
        "kind": ("localized", "comprehensive", "other")[i % 3],
        "segment": [0.25, 1.5],
        "provenance": {"model": "m", "manipulation": "segment / rest", "verdict": "yes"},
    }
    for i in range(4)
]
_CONVERSATION = {
    "id": "c",
    "video": _SMALL[0],
    "conversations": [
        {"from": "human", "value": "<image>\nWho?"},
        {"from": "gpt", "value": "A man."},
    ],
    "rejected": "A dog.",
}
_SWIFT = {
    "videos": [_SMALL[0]],
    "system": "Be brief.",
    "messages": [
        {"role": "user", "content": "<video>Who?"},
        {"role": "assistant", "content": "A man."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here."},
    ],
    "rejected_response": "There.",
}
_TRL = {
    "videos": [_SMALL[0]],
    "prompt": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}],
    "chosen": [{"role": "assistant", "content": "A man."}],
    "rejected": [{"role": "assistant", "content": "A dog."}],
}
SRT = "".join(
    f"{i + 1}\n00:00:{2 * i:02},000 --> 00:00:{2 * i + 1:02},500\n<b>line {i}</b>\n\n"
    for i in range(6)
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input.

    `make(rng, cache, folder)` puts bad inputs into `folder` and returns the arguments of the
    command, whose output is always below `folder/out`. `check(folder, out)` says what is
    wrong with a result.
    """

    module: str
    share: int  # of a thousand inputs
    make: Callable[[np.random.Generator, Path, Path], list[str]]
    inputs: int = 1  # of one call
    check: Callable[[Path, str], str] = lambda folder, out: ""


def make_cache(cache: Path) -> None:
    """Make all good inputs, below `cache`."""
    (cache / "clips").mkdir(parents=True)
    for name, write in clips.VIDEOS.items():
        write(cache / "clips" / name)
    small = cache / "small"
    small.mkdir()
    for name in _SMALL:
        shutil.copy(cache / "clips" / name, small)
    (small / "frames").mkdir()
    Image.new("RGB", (32, 24), "red").save(small / "frames/0.png")
    save_tokenizer(train_tokenizer([str(PAIRS)] * 3, vocab_size=300), cache / "tokenizer")
    (cache / "pairs.json").write_text(json.dumps(PAIRS))
    for encoding in shards.FRAME_ENCODINGS:
        settings = preparation.Settings(num_frames=2, frames=encoding)
        output = cache / f"shards_{encoding}"
        preparation.prepare(
            cache / "pairs.json",
            small,
            output,
            settings,
            preparation.Work(num_shards=2, shard_mb=0),
        )
    paths = [small / name for name in _SMALL[:3]]
    make_folders(cache, paths, [probe(path).duration for path in paths])
    _make_checkpoint(cache / "checkpoint", cache / "tokenizer")
    (cache / "archives").mkdir()
    _make_archives(cache / "archives", small)
    (cache / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tiff", "ico", "ppm", "tga", "jp2"):
        Image.fromarray(pixels).save(cache / f"pictures/p.{suffix}")


def _make_checkpoint(folder: Path, tokenizer: Path) -> None:
    small = families.preset("tiny_longva")
    decoder = dataclasses.replace(
        small.decoder, vocab_size=304, width=16, layers=1, heads=2, kv_heads=1, mlp_width=16
    )
    tower = dataclasses.replace(small.tower, width=16, heads=2, mlp_width=16)
    config = dataclasses.replace(small, tower=tower, decoder=decoder, max_length=1024)
    folder.mkdir()
    export_model(folder, config, families.init_params(config, 0), None, None)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)


def _make_archives(folder: Path, files: Path) -> None:
    for kind in ("", "gz", "bz2", "xz"):
        with tarfile.open(folder / f"videos.tar{kind}", f"w:{kind}") as out:
            for file in sorted(files.glob("*.*")):
                out.add(file, file.name)
    with zipfile.ZipFile(folder / "videos.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for file in sorted(files.glob("*.*")):
            out.write(file, file.name)
    hostile = io.BytesIO()
    with tarfile.open(fileobj=hostile, mode="w") as out:
        for name, kind, target in (
            ("../up.mp4", tarfile.REGTYPE, ""),
            ("/owned.mp4", tarfile.REGTYPE, ""),
            ("link", tarfile.SYMTYPE, "/"),
            ("link/owned.mp4", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "../../stdout"),
            ("pipe", tarfile.FIFOTYPE, ""),
            ("zero", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            out.addfile(info, io.BytesIO(b""))
    (folder / "hostile.tar").write_bytes(hostile.getvalue())


def _pick(rng: np.random.Generator, items):
    items = list(items)
    return items[int(rng.integers(len(items)))]


def _linked(source: Path, target: Path) -> Path:
    """Copy a folder by links; what changes is written anew."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def videos(rng, cache, folder):
    """Make clips of every container and codec."""
    sources = sorted((cache / "clips").iterdir())
    (folder / "videos").mkdir()
    pairs = []
    for i in range(BATCH):
        source, other = _pick(rng, sources), _pick(rng, sources)
        name = f"{i}{source.suffix}"
        bad = mutate.data(rng, source.read_bytes(), other.read_bytes())
        (folder / "videos" / name).write_bytes(bad)
        pairs.append({"video": name, "prompt": "Who?", "chosen": "a", "rejected": "b"})
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return [
        f"--pairs={folder}/pairs.json",
        f"--videos={folder}/videos",
        f"--output={folder}/out",
        f"--num_frames={rng.integers(1, 17)}",
        f"--sampling={_pick(rng, sampling.RULES)}",
        f"--frames={_pick(rng, shards.FRAME_ENCODINGS)}",
        "--workers=1",
    ]


def check_videos(folder, out):
    """Check that every clip is in the shards or among the rejected, with a reason."""
    if not (folder / "out").exists():
        return ""
    manifest = json.loads((folder / "out/manifest.json").read_text())
    rejected = folder / "out/rejected.jsonl"
    lines = rejected.read_text().splitlines() if rejected.exists() else []
    reasons = [json.loads(line)["reason"] for line in lines]
    if manifest["pairs"] + len(reasons) != BATCH or manifest["rejected"] != len(reasons):
        return f"{manifest['pairs']} pairs and {len(reasons)} rejected of {BATCH}"
    bad = [reason for reason in reasons if not reason.isprintable() or len(reason) < 5]
    return f"no reason: {bad[0]!r}" if bad else ""


def lists(rng, cache, folder):
    """Make lists of pairs in every format and layout."""
    flat = [{k: v for k, v in pair.items() if isinstance(v, str)} for pair in PAIRS]
    name = _pick(rng, ("jsonl", "json", "csv", "yaml", "parquet", "mixture.yaml", "jsonl", "json"))
    path = folder / f"pairs.{name}"
    rows = _pick(rng, (PAIRS, [_CONVERSATION] * 2, [_TRL] * 2, [_SWIFT] * 2))
    if name in ("json", "jsonl") and rng.random() < 0.5:
        if name == "json":
            path.write_bytes(mutate.nested(rng, rows))
        else:
            path.write_bytes(b"\n".join(mutate.nested(rng, row) for row in rows))
    elif name == "jsonl":
        path.write_bytes(mutate.text(rng, "".join(json.dumps(row) + "\n" for row in rows)))
    elif name == "json":
        path.write_bytes(mutate.text(rng, json.dumps(rows)))
    elif name == "yaml":
        path.write_bytes(mutate.text(rng, yaml.safe_dump(rows)))
    elif name == "mixture.yaml":
        shutil.copy(cache / "pairs.json", folder / "a.json")
        entry = {"json_path": f"{folder}/a.json", "sampling_strategy": "random:50%"}
        path.write_bytes(mutate.text(rng, yaml.safe_dump({"datasets": [entry, entry]})))
    else:
        buffer = io.BytesIO()
        table = pyarrow.Table.from_pylist(flat if name == "csv" else PAIRS)
        if name == "csv":
            pyarrow.csv.write_csv(table, buffer)
            path.write_bytes(mutate.text(rng, buffer.getvalue().decode()))
        else:
            pyarrow.parquet.write_table(table, buffer)
            path.write_bytes(mutate.data(rng, buffer.getvalue()))
    return [
        f"--pairs={path}",
        f"--videos={cache}/small",
        f"--output={folder}/out",
        "--num_frames=2",
        "--frames=png",
        "--workers=1",
    ]


def records(rng, cache, folder):
    """Make shards with broken files, notes or records, of pairs or of videos."""
    source = cache / f"shards_{_pick(rng, shards.FRAME_ENCODINGS)}"
    target = _linked(source, folder / "shards")
    manifest = shards.open_shards(source).manifest
    of_videos = bool(rng.integers(2))
    part, place = (manifest["store"], target / "videos") if of_videos else (manifest, target)
    path = place / part["shards"][int(rng.integers(len(part["shards"])))]["name"]
    match int(rng.integers(5)):
        case 0:  # the file, and a manifest that believes it
            _replace(path, mutate.data(rng, path.read_bytes()))
            _believe(target, path)
        case 1:
            file = _pick(rng, (target / shards.MANIFEST, place / shards.INDEX))
            _replace(file, mutate.text(rng, file.read_text()))
        case 2:
            file = target / shards.MANIFEST
            _replace(file, mutate.nested(rng, json.loads(file.read_text())))
        case 3:
            file = place / shards.INDEX
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            _replace(file, b"\n".join(mutate.nested(rng, line) for line in lines))
        case _:  # a record, in a file that is whole
            found = list(ArrayRecordDataSource([str(path)]))
            path.unlink()
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in found:
                writer.write(mutate.data(rng, record))
            writer.close()
            _believe(target, path)
    return ["records", f"--input={target}", f"--tokenizer={cache}/tokenizer"]


def _believe(folder: Path, changed: Path) -> None:
    path = folder / shards.MANIFEST
    manifest = json.loads(path.read_text())
    for shard in (*manifest["shards"], *manifest["store"]["shards"]):
        if shard["name"] == changed.name:
            shard["bytes"] = changed.stat().st_size
    _replace(path, json.dumps(manifest).encode())


def subtitles(rng, cache, folder):
    """Make SRT files of Video-MME, JSON lists of LongVideoBench."""
    name = _pick(rng, ("videomme", "datasets/longvideobench"))
    target = _linked(cache / name, folder / "data")
    if name == "videomme":
        for file in (target / "subtitle").iterdir():
            _replace(file, mutate.text(rng, _pick(rng, (SRT, file.read_text()))))
        return ["benchmark", f"--input={target}", "--benchmark=videomme_w_subtitle"]
    for file in (target / "subtitles").iterdir():
        text = file.read_text()
        bad = mutate.nested(rng, json.loads(text)) if rng.random() < 0.5 else mutate.text(rng, text)
        _replace(file, bad)
    benchmark = _pick(rng, ("longvideobench_val_v", "longvideobench_val_i"))
    return ["benchmark", f"--input={target}", f"--benchmark={benchmark}"]


def rows(rng, cache, folder):
    """Make a benchmark's own rows, as a table or as JSON."""
    name, benchmark, place = _pick(
        rng,
        (
            ("videomme", "videomme_w_subtitle", "videomme/test"),
            ("mlvu", "mlvu_dev", "data/test"),
            ("datasets/longvideobench", "longvideobench_val_i", "data/validation"),
            ("lvbench", "lvbench", "data/train"),
            ("tempcompass", "tempcompass_multi_choice", "multi-choice/test"),
        ),
    )
    target = _linked(cache / name, folder / "data")
    tables = sorted(target.glob(f"{place}-*.parquet"))
    if rng.random() < 0.3:
        file = _pick(rng, tables)
        _replace(file, mutate.data(rng, file.read_bytes()))
    else:
        found = pyarrow.parquet.read_table(tables[0]).to_pylist()
        for file in tables:
            file.unlink()
        lines = [mutate.nested(rng, row) for row in found]
        if rng.random() < 0.5:
            (target / f"{place}.jsonl").write_bytes(b"\n".join(lines))
        else:
            (target / f"{place}.json").write_bytes(b"[" + b",".join(lines) + b"]")
    return ["benchmark", f"--input={target}", f"--benchmark={benchmark}"]


def predictions(rng, cache, folder):
    """Make stored predictions."""
    benchmark = _pick(rng, ("videomme", "mlvu_dev", "mlvu_test", "longvideobench_val_v", "lvbench"))
    seed = int(rng.integers(1000))
    lines = [
        {"doc": doc, "prediction": text}
        for doc, text in zip(make_docs(benchmark, seed, 4), generate(seed, 60)[-4:], strict=True)
    ]
    if rng.random() < 0.7:
        content = b"\n".join(mutate.nested(rng, line) for line in lines)
    else:
        content = mutate.text(rng, "".join(json.dumps(line) + "\n" for line in lines))
    (folder / "predictions.jsonl").write_bytes(content)
    return [
        "score",
        f"--benchmark={benchmark}",
        f"--predictions={folder}/predictions.jsonl",
        f"--output={folder}/out.jsonl",
        f"--scorer={_pick(rng, ERAS)}",
    ]


def model_configs(rng, cache, folder):
    """Make `config.json` and the tokenizer of a checkpoint."""
    target = _linked(cache / "checkpoint", folder / "checkpoint")
    file = target / _pick(rng, ("config.json", "config.json", "tokenizer.json"))
    text = file.read_text()
    bad = mutate.nested(rng, json.loads(text)) if rng.random() < 0.7 else mutate.text(rng, text)
    _replace(file, bad)
    return [f"--input={target}", f"--output={folder}/out"]


def safetensors(rng, cache, folder):
    """Make headers of safetensors files: their length, their JSON, or any bytes."""
    target = _linked(cache / "checkpoint", folder / "checkpoint")
    file = _pick(rng, sorted(target.glob("*.safetensors")))
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.2:
        content = mutate.data(rng, content)
    else:
        if rng.random() < 0.6:
            header = mutate.nested(rng, json.loads(header))
        else:
            header = mutate.text(rng, header.decode())
        length = len(header) if rng.random() < 0.9 else int(rng.integers(2**63))
        content = length.to_bytes(8, "little") + header + rest
    _replace(file, content)
    return [f"--input={target}", f"--output={folder}/out"]


def archives(rng, cache, folder):
    """Make tar and zip archives, also split."""
    source, other = _pick(rng, sorted((cache / "archives").iterdir())), cache / "clips/one.mp4"
    bad = mutate.data(rng, source.read_bytes(), other.read_bytes())
    name = folder / source.name
    if rng.random() < 0.3:
        half = len(bad) // 2
        name = folder / "videos.part."
        (folder / "videos.part.aa").write_bytes(bad[:half])
        (folder / "videos.part.ab").write_bytes(bad[half:])
    else:
        name.write_bytes(bad)
    return [
        f"--archive={name}",
        f"--pairs={cache}/pairs.json",
        f"--videos={folder}/out_videos",
        f"--output={folder}/out",
        "--num_frames=2",
        "--frames=png",
        "--workers=1",
    ]


def pictures(rng, cache, folder):
    """Make still images."""
    files = sorted((cache / "pictures").iterdir())
    source, other = _pick(rng, files), _pick(rng, files)
    path = folder / source.name
    path.write_bytes(mutate.data(rng, source.read_bytes(), other.read_bytes()))
    return ["picture", f"--input={path}"]


def overrides(rng, cache, folder):
    """Set fields of a config on the command line."""
    fields = list(_fields(base().to_dict()))
    arguments = []
    for _ in range(int(rng.integers(1, 4))):
        name, value = _pick(rng, fields)
        wild = _pick(rng, (*mutate.WILD, -value if isinstance(value, int | float) else value))
        if rng.random() < 0.1:
            name = mutate.text(rng, name).decode(errors="replace")
        shown = wild if isinstance(wild, str) else json.dumps(wild)
        shown = shown.replace("\0", "").encode("utf-8", "replace").decode()
        arguments.append(f"--config.{name}={shown[:20_000]}")
    return [
        f"--config={ROOT}/configs/tiny.py",
        f"--workdir={folder}/out",
        f"--config.data.shards={cache}/shards_png",
        *arguments,
        f"--config.model.checkpoint={folder}/missing",
    ]


def _fields(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


KINDS = {
    "videos": Kind("tpo_jax.prepare", 260, videos, BATCH, check_videos),
    "lists of pairs": Kind("tpo_jax.prepare", 160, lists),
    "archives": Kind("tpo_jax.prepare", 50, archives),
    "shards and records": Kind("tests.fuzz.entries", 130, records),
    "subtitles": Kind("tests.fuzz.entries", 80, subtitles),
    "rows of benchmarks": Kind("tests.fuzz.entries", 60, rows),
    "pictures": Kind("tests.fuzz.entries", 60, pictures),
    "predictions": Kind("tpo_jax.evaluate", 60, predictions),
    "configs of models": Kind("tpo_jax.convert", 50, model_configs),
    "safetensors headers": Kind("tpo_jax.convert", 60, safetensors),
    "fields of configs": Kind("tpo_jax.train", 30, overrides),
}
