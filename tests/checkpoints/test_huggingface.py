"""Hugging Face checkpoints: there and back byte by byte, sharded reading, strictness."""

import dataclasses
import json
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from tests import originals
from tests.commands import call
from tpo_jax import families
from tpo_jax.checkpoints.huggingface import weights
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.checkpoints.models import load_config, load_model, save_model
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen import config as configs
from tpo_jax.parallel.mesh import make_mesh

torch = originals.torch
FAMILIES = {"longva": originals.LONGVA, "llava_video": originals.LLAVA_VIDEO}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return originals.Original(FAMILIES[request.param])


@pytest.fixture(scope="module")
def longva():
    return originals.Original(originals.LONGVA)


def read_tensors(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(file, "pt") as shard:
            tensors |= {name: (file.name, shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118
    return tensors


def same_bytes(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("longva", torch.float32), ("llava_video", torch.bfloat16)],
    indirect=["family"],
)
def test_round_trip_is_byte_identical(tmp_path, family, dtype):
    source, back = tmp_path / "source", tmp_path / "back"
    originals.write_checkpoint(source, family, dtype=dtype)
    (source / "tokenizer_config.json").write_text('{"model_max_length": 32768}')
    (source / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    loaded = load_model(source, dtype=None)
    assert loaded.config == family.config
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {jnp.dtype(str(dtype)[6:])}
    save_model(tmp_path / "native", loaded.config, loaded.params, source)
    native = load_model(tmp_path / "native", dtype=None)
    save_model(tmp_path / "copy", native.config, native.params, tmp_path / "native")
    back.mkdir()
    export_model(back, native.config, native.params, tmp_path / "copy" / "huggingface")
    # The same files, headers included; only the index is written anew.
    for file in source.rglob("*"):
        if file.is_file() and file.name.startswith(("model-", "config")):
            assert (back / file.relative_to(source)).read_bytes() == file.read_bytes(), file
    index = "model.safetensors.index.json"
    assert json.loads((back / index).read_text()) == json.loads((source / index).read_text())


def test_command_both_ways(tmp_path, longva, qwen2_tokenizer):
    tensors = originals.write_checkpoint(tmp_path / "source", longva, dtype=torch.bfloat16)
    source, native, back = (tmp_path / name for name in ("source", "native", "back"))
    there, home = call(
        "convert",
        {"input": source, "output": native, "max_length": 99},
        {"input": native, "output": back},
    )
    assert (there.code, there.out) == (0, f"{native}\n"), there.err
    assert load_config(native).max_length == 99
    assert home.code == 0, home.err
    found = read_tensors(tmp_path / "back")
    assert found.keys() == tensors.keys()
    assert all(same_bytes(found[name][1], tensors[name]) for name in tensors)
    values = json.loads((tmp_path / "source" / "config.json").read_text())
    values["tokenizer_model_max_length"] = 99  # what was asked for stays asked for
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == values
    # A tokenizer with more ids than the embedding has rows belongs to another model.
    shutil.copy(qwen2_tokenizer / "tokenizer.json", tmp_path / "source")
    (failed,) = call("convert", {"input": source, "output": tmp_path / "again"})
    assert failed.code == 2 and "tokenizer.json" in failed.err
    assert failed.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "native", "source"]


def test_transformers_reads_the_exported_decoder(tmp_path, family):
    originals.write_checkpoint(tmp_path / "source", family)
    loaded = load_model(tmp_path / "source")
    (tmp_path / "back").mkdir()
    export_model(tmp_path / "back", loaded.config, loaded.params, None)
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    values.update(model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    (tmp_path / "back" / "config.json").write_text(json.dumps(values))
    Qwen2 = originals.transformers.Qwen2ForCausalLM
    qwen2, info = Qwen2.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    theirs = family.state_dict()
    for name, value in qwen2.state_dict().items():
        assert same_bytes(value, theirs[name]), name


@pytest.mark.parametrize("name", ["tiny_longva", "tiny_llava_video"])
def test_export_of_a_model_without_an_original(tmp_path, name):
    config = families.preset(name)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32), families.abstract_params(config)
    )
    (tmp_path / "out").mkdir()
    export_model(tmp_path / "out", config, params, None)
    loaded = load_model(tmp_path / "out")
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_sharded_reading(tmp_path, family):
    originals.write_checkpoint(tmp_path / "source", family)
    plain = load_model(tmp_path / "source").params
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 1, "context": 1}, jax.devices()[:4])
    sharded = load_model(tmp_path / "source", mesh=mesh).params
    assert len(sharded["decoder"]["layers"]["q"]["kernel"].sharding.device_set) == 4
    jax.tree.map(np.testing.assert_array_equal, sharded, plain)


def test_rows_come_from_the_tensor(tmp_path, longva):
    originals.write_checkpoint(tmp_path / "source", longva)
    edit_config(tmp_path / "source", vocab_size=152064)
    assert load_config(tmp_path / "source").decoder.vocab_size == 97


def test_trained_weights_keep_what_no_output_depends_on(tmp_path, longva):
    tensors = originals.write_checkpoint(tmp_path / "source", longva, dtype=torch.bfloat16)
    loaded = load_model(tmp_path / "source")
    params = jax.tree.map(lambda x: x, loaded.params)
    params["decoder"]["norm"]["scale"] += 2**-20  # not a bfloat16 number any more
    save_model(tmp_path / "native", loaded.config, params, tmp_path / "source")
    (tmp_path / "back").mkdir()
    kept = tmp_path / "native" / "huggingface"
    export_model(tmp_path / "back", loaded.config, params, kept)
    found = read_tensors(tmp_path / "back")
    assert found.keys() == tensors.keys()
    changed = {name for name in tensors if not same_bytes(found[name][1], tensors[name])}
    assert changed == {"model.norm.weight"}
    assert found["model.norm.weight"][1].dtype == torch.float32


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory, change):
    """Rewrites the last file with its tensors changed."""
    file = sorted(directory.glob("*.safetensors"))[-1]
    with safetensors.safe_open(file, "pt") as shard:
        tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    change(tensors)
    originals.save_file(tensors, file)


BREAKS = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "not JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read"),
    "architecture": (
        lambda d: edit_config(d, architectures=["LlamaForCausalLM"], mm_vision_tower=None),
        r"architectures is \['LlamaForCausalLM'\]",
    ),
    "tower": (lambda d: edit_config(d, mm_vision_tower="eva"), "mm_vision_tower='eva'"),
    "outside": (lambda d: edit_config(d, mm_vision_tower="../other"), "mm_vision_tower"),
    "pooling": (lambda d: edit_config(d, mm_spatial_pool_mode="median"), "pooling"),
    "stride": (lambda d: edit_config(d, mm_spatial_pool_stride=4), "mm_spatial_pool_stride=4"),
    "faster video": (lambda d: edit_config(d, add_faster_video=True), "add_faster_video=True"),
    "tiles": (lambda d: edit_config(d, image_grid_pinpoints=[7]), "image_grid_pinpoints"),
    "index": (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "weight_map"),
    "type": (lambda d: edit_config(d, hidden_size="wide"), "config.json"),
    "missing file": (
        lambda d: (d / "model-00002-of-00002.safetensors").unlink(),
        "names model-00002-of-00002.safetensors, which does not exist",
    ),
    "wrong index": (
        lambda d: edit_tensors(d, lambda tensors: tensors.popitem()),
        "index.json says that",
    ),
    "no weights": (lambda d: [p.unlink() for p in d.glob("model*")], "no .safetensors files"),
    "truncated": (
        lambda d: truncate(d / "model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors: not a whole safetensors file",
    ),
}


def truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("case", BREAKS)
def test_broken_directories(tmp_path, longva, case):
    source = tmp_path / "source"
    originals.write_checkpoint(source, longva, shards=2)
    change, message = BREAKS[case]
    change(source)
    with pytest.raises(InputError, match=message) as error:
        load_model(source)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def source_of_configs(tmp_path_factory, longva):
    directory = tmp_path_factory.mktemp("configs")
    originals.write_checkpoint(directory, longva, shards=1)
    return (
        directory,
        longva.config_values(),
        json.loads((directory / "vision_tower" / "config.json").read_text()),
    )


@pytest.mark.parametrize(
    "ignored",
    # The originals' video path never asks the resampler, and they set rope_scaling to none.
    [{"mm_resampler_type": "spatial_pool"}, {"rope_scaling": {"type": "linear", "factor": 4.0}}],
)
def test_what_the_originals_ignore(source_of_configs, ignored):
    directory, values, _ = source_of_configs
    (directory / "config.json").write_text(json.dumps(values | ignored))
    assert load_config(directory) == originals.LONGVA


def test_what_config_json_says_on_images(source_of_configs):
    directory, values, _ = source_of_configs
    open_ = {k: v for k, v in values.items() if not k.startswith("image_")}
    given = open_ | {"image_aspect_ratio": "pad", "image_grid_pinpoints": "(1x1),...,(2x2)"}
    for found, wanted in (
        (open_, configs.unires(24)),
        (open_ | {"mm_patch_merge_type": "spatial_unpad"}, configs.spatial_unpad(24)),
        (
            given,
            configs.ImageConfig("unires", "pad", ((24, 24), (24, 48), (48, 24), (48, 48))),
        ),
    ):
        (directory / "config.json").write_text(json.dumps(found))
        config = load_config(directory)
        assert config.images == wanted
        assert configs.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


ANYTHING = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3)


@hypothesis.given(data=st.data())
def test_any_config_is_read_or_refused_in_one_line(source_of_configs, data):
    directory, values, tower = source_of_configs
    chosen = data.draw(st.sampled_from((values, tower)))
    keys = data.draw(st.sets(st.sampled_from(sorted(chosen)), min_size=1, max_size=2))
    changes = {key: data.draw(ANYTHING | st.lists(ANYTHING, max_size=2), key) for key in keys}
    (directory / "config.json").write_text(
        json.dumps(values | (changes if chosen is values else {}))
    )
    (directory / "vision_tower" / "config.json").write_text(
        json.dumps(tower | (changes if chosen is tower else {}))
    )
    try:
        load_config(directory)
    except InputError as error:
        assert "\n" not in str(error)


def test_every_tensor_is_needed_in_its_shape_and_finite(tmp_path, longva):
    source = tmp_path / "source"
    tensors = originals.write_checkpoint(source, longva, shards=1)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == weights(longva.config).tensors
    file = next(source.glob("*.safetensors"))
    (source / "model.safetensors.index.json").unlink()
    native = tmp_path / "native"

    def fails(changed, message):
        originals.save_file(changed, file)
        with pytest.raises(InputError, match=message):
            loaded = load_model(source, dtype=None)
            save_model(native, loaded.config, loaded.params, source)
        assert not [p for p in tmp_path.iterdir() if p != source]

    names = sorted(tensors)
    for name in names[:: len(names) // 6]:
        rest = {key: value for key, value in tensors.items() if key != name}
        fails(rest, f"tensor {name} is missing")
        wrong = torch.cat([tensors[name], tensors[name]])
        if name != "model.embed_tokens.weight":
            fails({**rest, name: wrong}, f"tensor {name} has shape")
        broken = tensors[name].clone()
        broken.view(-1)[-1] = float("nan")
        fails({**rest, name: broken}, f"{name} holds NaN")
    fails({**tensors, "model.extra.weight": torch.ones(2)}, "model.extra.weight is not part of")
    # Leftovers of the originals that may be there.
    position_ids = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
    originals.save_file({**tensors, position_ids: torch.arange(37)[None]}, file)
    load_model(source)


def test_full_size_counts():
    def count(tree):
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))

    def tower(shapes):
        return sum(int(np.prod(s)) for name, s in shapes.items() if "vision_tower" in name)

    for name, tower_count, projector in (
        ("longva_7b", 303_507_456, 16_522_240),
        ("llava_video_7b", 397_747_744, 16_980_992),
    ):
        config = families.preset(name)
        params = families.abstract_params(config)
        shapes = weights(config).tensors
        assert count(params["decoder"]) == 7_615_616_512
        assert tower(shapes) == tower_count
        assert count(params["projector"]) == projector
        assert count(params.get("newline", {})) == (3_584 if config.has_newline else 0)
