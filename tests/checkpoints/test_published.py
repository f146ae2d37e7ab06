"""Checkpoints as they lie on the Hub: what decides on the architecture, where the tower comes from,
sizes. Files of any size are sparse: headers and no weights.
"""

import dataclasses
import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.checkpoints.huggingface import weights
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.checkpoints.models import is_native, load_config, load_model, open_model, save_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.checkpoints.safetensors_files import Entry, SafetensorsWriter
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import LlavaQwenConfig, TowerConfig
from tpo_jax.families.llava_qwen.weights import VISION
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.lora import Lora, init_adapters, join, merge
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

DECODER = DecoderConfig(320, 48, 2, 4, 2, 12, 64, 1e4)
# The heads of these follow from the widths, and no patch leaves a pixel over.
TOWERS = {
    "clip": TowerConfig("clip", 24, 8, 128, 2, 2, 96),
    "siglip": TowerConfig("siglip", 32, 8, 144, 2, 2, 96),
}
CONFIGS = {
    "clip": LlavaQwenConfig(TOWERS["clip"], DECODER),
    "siglip": LlavaQwenConfig(TOWERS["siglip"], DECODER, newline="grid"),
}


def write_sparse(directory, values, config):
    """A checkpoint of a model's tensors, all zero, that takes no space."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(values))
    entries = {name: Entry("BF16", shape, 2) for name, shape in weights(config).tensors.items()}
    SafetensorsWriter(directory / "model.safetensors", entries, {"format": "pt"})


def write(directory, config):
    """A checkpoint of random weights in the original layout; returns them."""
    params = random_params(config)
    directory.mkdir()
    export_model(directory, config, params, None)
    return params


def edit(directory, **changes):
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def preset(name, **changes):
    return dataclasses.replace(families.preset(name), **changes)


CASES = {
    "model_type_llava": preset("llava_video_7b", pooling="bilinear"),
    "model_type_qwen2": preset("longva_7b", max_length=32768),
    "onevision_7b": preset("llava_onevision_7b"),
    "onevision_half_billion": preset("llava_onevision_0.5b"),
    "llava_video_72b": preset("llava_video_72b", pooling="bilinear"),
    "tower_elsewhere": preset("llava_video_7b", pooling="bilinear"),
}


@pytest.mark.parametrize("case", CASES)
def test_published_configs(shared_cases, tmp_path, case):
    values = json.loads((shared_cases / "checkpoints" / f"{case}.json").read_text())
    write_sparse(tmp_path / "it", values, CASES[case])
    opened = open_model(tmp_path / "it")  # checks every tensor's shape
    assert opened.config == CASES[case]


# What other servers and the Hub's automatic tag have made of it.
TYPES = ["llava", "qwen2", "llava_qwen", "llama", "", None, 7, ...]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_architecture_decides_and_model_type_never(tmp_path, kind, capsys):
    params = write(tmp_path / "it", CONFIGS[kind])
    for name in TYPES:
        edit(tmp_path / "it", model_type=name)
        assert load_config(tmp_path / "it") == CONFIGS[kind]
    assert not capsys.readouterr().err
    # Without the architecture the tensors decide, and it is said.
    for architectures in (..., None, ["Qwen2ForCausalLM"], "LlavaQwenForCausalLM"):
        edit(tmp_path / "it", architectures=architectures)
        loaded = load_model(tmp_path / "it")
        assert loaded.config == CONFIGS[kind]
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    said = capsys.readouterr().err
    assert "architectures is ['Qwen2ForCausalLM']; by its tensors it is taken for one of" in said
    assert said.count("in the layout 'original'\n") == said.count("note: ") == 3
    # An export says what the input said.
    edit(tmp_path / "it", model_type="llava")
    save_model(tmp_path / "native", loaded.config, loaded.params, tmp_path / "it")
    (tmp_path / "back").mkdir()
    kept = tmp_path / "native" / "huggingface"
    export_model(tmp_path / "back", loaded.config, loaded.params, kept)
    found = (tmp_path / "back" / "config.json").read_bytes()
    assert found == (tmp_path / "it" / "config.json").read_bytes()


def test_the_layout_of_transformers_without_a_name(tmp_path, capsys):
    config = dataclasses.replace(CONFIGS["siglip"], pooling="bilinear", newline="one_token")
    params = random_params(config)
    (tmp_path / "it").mkdir()
    export_model(tmp_path / "it", config, params, None, layout="transformers")
    for architectures in (..., []):
        edit(tmp_path / "it", architectures=architectures, model_type="llava")
        loaded = load_model(tmp_path / "it")
        assert loaded.config == config
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert "in the layout 'transformers'\n" in capsys.readouterr().err
    # Other classes of that layout have the same tensors.
    edit(tmp_path / "it", architectures=["LlavaNextForConditionalGeneration"])
    with pytest.raises(InputError, match="LlavaNextForConditionalGeneration"):
        load_config(tmp_path / "it")


def test_a_note_is_printed_once_whatever_the_path(tmp_path, monkeypatch, capsys):
    write(tmp_path / "it", CONFIGS["siglip"])
    edit(tmp_path / "it", architectures=..., rope_theta=...)
    monkeypatch.chdir(tmp_path)
    assert not is_native("it")
    for path in ("it", tmp_path / "it"):
        load_config(path)
        open_model(path)
    said = capsys.readouterr().err
    assert said.count("architectures is None") == said.count("no rope_theta") == 1


def test_rows_other_than_the_vocabulary_are_said(tmp_path, capsys):
    """The tensor decides, in either layout."""
    config = dataclasses.replace(CONFIGS["siglip"], pooling="bilinear", newline="one_token")
    params = random_params(config)
    for layout in families.of(config).layouts:
        it = tmp_path / layout
        it.mkdir()
        export_model(it, config, params, None, layout=layout)
        assert load_config(it) == config
        assert not capsys.readouterr().err
        text = json.loads((it / "config.json").read_text()).get("text_config")
        edit(it, **({"text_config": text | {"vocab_size": 321}} if text else {"vocab_size": 321}))
        assert load_config(it) == config
        said = capsys.readouterr().err
        assert "vocab_size=321, but the embedding has 320 rows, which are used" in said


def test_folders_of_towers_come_back(tmp_path, capsys):
    """Also where `mm_vision_tower` is a name on the Hub."""
    it = tmp_path / "it"
    params = write(it, CONFIGS["siglip"])
    config = (it / "vision_tower" / "config.json").read_bytes()
    (it / "vision_tower" / "preprocessor_config.json").write_text("{}")
    (it / "checkpoint-5").mkdir()  # no tower
    (it / "checkpoint-5" / "config.json").write_text("{}")
    for name in ("google/siglip-base-patch8", "vision_tower"):
        edit(it, mm_vision_tower=name)
        loaded = load_model(it)
        save_model(tmp_path / name, loaded.config, loaded.params, it)
        back = tmp_path / f"back {len(name)}"
        back.mkdir()
        export_model(back, loaded.config, params, tmp_path / name / "huggingface")
        assert (back / "vision_tower" / "config.json").read_bytes() == config
        assert (back / "vision_tower" / "preprocessor_config.json").read_text() == "{}"
        assert not (back / "checkpoint-5").exists()
        edit(back, mm_vision_tower=name)
        assert load_config(back) == CONFIGS["siglip"]
    assert "its config is kept" not in capsys.readouterr().err
    save_file({"x": np.ones(1, np.float32)}, it / "vision_tower" / "model.safetensors")
    save_model(tmp_path / "again", loaded.config, loaded.params, it)
    assert "its config is kept; its weights" in capsys.readouterr().err


PLAIN = [None, {}, {"rope_type": "default"}, {"type": "linear", "factor": 1.0}]


def test_scaled_positions_are_ignored_as_the_original_code_does(tmp_path, capsys):
    write(tmp_path / "it", CONFIGS["siglip"])
    for key in ("rope_scaling", "rope_parameters"):
        for value in PLAIN:
            edit(tmp_path / "it", **{key: value})
            assert load_config(tmp_path / "it") == CONFIGS["siglip"]
        assert not capsys.readouterr().err
        for value in ({"type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 8.0}):
            edit(tmp_path / "it", **{key: value})
            assert load_config(tmp_path / "it") == CONFIGS["siglip"]
            assert f"{key}={value} is ignored" in capsys.readouterr().err
        edit(tmp_path / "it", **{key: ...})


def test_a_guessed_base_of_the_positions_is_said(tmp_path, capsys):
    write(tmp_path / "it", CONFIGS["siglip"])
    edit(tmp_path / "it", rope_theta=..., rope_parameters={"rope_theta": 5e5})
    assert load_config(tmp_path / "it").decoder.rope_theta == 5e5
    assert not capsys.readouterr().err
    edit(tmp_path / "it", rope_parameters=...)
    assert load_config(tmp_path / "it").decoder.rope_theta == 1e6
    assert "no rope_theta; the base of the positions is 1e+06" in capsys.readouterr().err
    assert load_config(tmp_path / "it", rope_theta=1e4).decoder.rope_theta == 1e4


def test_other_architectures_are_refused(tmp_path):
    write(tmp_path / "it", CONFIGS["siglip"])
    edit(tmp_path / "it", architectures=["Qwen2ForCausalLM"], mm_vision_tower=...)
    with pytest.raises(InputError, match=r"architectures is \['Qwen2ForCausalLM'\]; only Llava"):
        load_config(tmp_path / "it")
    edit(tmp_path / "it", architectures=["LlavaLlamaForCausalLM"], mm_vision_tower="x")
    file = tmp_path / "it" / "model-00001-of-00001.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if "q_proj.bias" not in k}
    save_file(tensors, file)
    (tmp_path / "it" / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="LlavaLlamaForCausalLM"):
        load_config(tmp_path / "it")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "someone/tower"),
        *[("siglip", x) for x in ("/data/models/my_tower", "../towers/mine", "someone/tower")],
        *[("siglip", x) for x in (".", None)],
    ],
)
def test_a_tower_is_told_from_its_tensors(tmp_path, kind, name, capsys):
    params = write(tmp_path / "it", CONFIGS[kind])
    shutil.rmtree(tmp_path / "it" / "vision_tower")
    edit(tmp_path / "it", mm_vision_tower=name)
    loaded = load_model(tmp_path / "it")
    assert loaded.config == CONFIGS[kind]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"mm_vision_tower={name or ''!r} is no folder here" in said
    save_model(tmp_path / "native", loaded.config, loaded.params, tmp_path / "it")
    (tmp_path / "back").mkdir()
    kept = tmp_path / "native" / "huggingface"
    export_model(tmp_path / "back", loaded.config, loaded.params, kept)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["mm_vision_tower"] == name


def test_a_tower_that_cannot_be_told(tmp_path):
    tower = dataclasses.replace(TOWERS["siglip"], width=100, heads=5)
    config = dataclasses.replace(CONFIGS["siglip"], tower=tower)
    params = write(tmp_path / "it", config)
    folder = tmp_path / "elsewhere"
    shutil.move(tmp_path / "it" / "vision_tower", folder)
    edit(tmp_path / "it", mm_vision_tower="mine")
    with pytest.raises(InputError, match="cannot be told from its tensors; give --tower=DIR"):
        load_config(tmp_path / "it")
    # Its folder says how many heads; the tensors are the checkpoint's.
    for given in ({"tower": folder}, {}):
        loaded = load_model(tmp_path / "it", **given)
        assert loaded.config == config
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
        edit(tmp_path / "it", mm_vision_tower=str(folder))


def delayed(directory, kind, prefix):
    """Write a checkpoint without its tower, and the tower as a folder of `transformers`."""
    config = CONFIGS[kind]
    params = write(directory / "it", config)
    file = directory / "it" / "model-00001-of-00001.safetensors"
    tensors = load_file(file)
    tower = {k: tensors.pop(k) for k in list(tensors) if k.startswith(VISION)}
    save_file(tensors, file)
    (directory / "it" / "model.safetensors.index.json").unlink()
    own = json.loads((directory / "it" / "vision_tower" / "config.json").read_text())
    shutil.rmtree(directory / "it" / "vision_tower")
    edit(directory / "it", mm_vision_tower="nowhere/tower")
    (directory / "tower").mkdir()
    tower = {prefix + name.removeprefix(VISION): value for name, value in tower.items()}
    if prefix:  # the whole model, with its text half
        own = {"model_type": kind, "vision_config": own, "text_config": {}}
        tower |= {"text_model.x.weight": np.ones(3, np.float32), "logit_scale": np.ones(1)}
    (directory / "tower" / "config.json").write_text(json.dumps(own))
    save_file(tower, directory / "tower" / "model.safetensors")
    return params


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("prefix", ["vision_model.", ""], ids=["whole", "vision alone"])
def test_delayed_loading(tmp_path, kind, prefix):
    params = delayed(tmp_path, kind, prefix)
    it, tower = tmp_path / "it", tmp_path / "tower"
    for load in (load_config, load_model):
        with pytest.raises(InputError, match=r"no tensors of a vision tower.*give --tower=DIR"):
            load(it)
    loaded = load_model(it, tower=tower)
    assert loaded.config == CONFIGS[kind]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    # What is exported is whole.
    save_model(tmp_path / "native", loaded.config, loaded.params, it, tower)
    assert load_model(tmp_path / "native").config == loaded.config
    with pytest.raises(InputError, match="is a native directory"):
        load_model(tmp_path / "native", tower=tower)
    (tmp_path / "back").mkdir()
    kept = tmp_path / "native" / "huggingface"
    export_model(tmp_path / "back", loaded.config, loaded.params, kept)
    again = load_model(tmp_path / "back")
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    # A folder that is where config.json says needs no flag.
    edit(it, mm_vision_tower=str(tower))
    jax.tree.map(np.testing.assert_array_equal, load_model(it).params, params)


def test_towers_and_adapters_have_names_on_the_hub(tmp_path, monkeypatch):
    """The Hub itself is served in test_hub; here a download gives the folder of a name."""
    params = delayed(tmp_path, "siglip", "")
    lora = Lora(rank=2)
    adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(lora, params, 0))
    save_adapters(tmp_path / "adapters", CONFIGS["siglip"], lora, adapters, "someone/it")
    asked = []

    def download(name, **_):
        asked.append(name)
        return str(tmp_path / name.removeprefix("someone/"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    names = [f"someone/{name}" for name in ("it", "tower", "adapters")]
    loaded = load_model(names[0], tower=names[1], adapters=names[2]).params
    assert set(asked) == set(names)
    expected = merge(join(jax.tree.map(jnp.asarray, params), adapters), lora)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_tower_s_folder_is_checked(tmp_path):
    delayed(tmp_path, "siglip", "")
    edit(tmp_path / "tower", model_type="dinov2")
    with pytest.raises(InputError, match="model_type is 'dinov2'"):
        load_model(tmp_path / "it", tower=tmp_path / "tower")
    (tmp_path / "tower" / "model.safetensors").rename(tmp_path / "tower" / "pytorch_model.bin")
    edit(tmp_path / "tower", model_type="siglip_vision_model")
    with pytest.raises(InputError, match=r"pickled \.bin files are never loaded"):
        load_model(tmp_path / "it", tower=tmp_path / "tower")


def test_tied_or_not(tmp_path, capsys):
    tied = dataclasses.replace(CONFIGS["clip"], decoder=dataclasses.replace(DECODER, tied=True))
    write(tmp_path / "it", tied)
    assert load_config(tmp_path / "it") == tied
    edit(tmp_path / "it", tie_word_embeddings=...)
    assert load_config(tmp_path / "it") == tied
    assert "no tie_word_embeddings and no lm_head.weight" in capsys.readouterr().err
    edit(tmp_path / "it", tie_word_embeddings=False)
    with pytest.raises(InputError, match="tensor lm_head.weight is missing"):
        load_model(tmp_path / "it")
    edit(tmp_path / "it", tie_word_embeddings="yes")
    with pytest.raises(InputError, match="tie_word_embeddings='yes'"):
        load_config(tmp_path / "it")


def test_tokens_without_an_embedding_row(tmp_path, capsys):
    """They load, and their text becomes ordinary ids; template tokens and others do not."""
    tokenizer = train_tokenizer(["<image> <video> a"], vocab_size=300)
    plain = tokenizer.encode("<image>\na", add_special_tokens=False).ids
    rows = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<image>", "<video>"])
    assert tokenizer.encode("<image>", add_special_tokens=False).ids == [rows]
    save_tokenizer(tokenizer, tmp_path)
    decoder = dataclasses.replace(DECODER, vocab_size=rows)
    config = dataclasses.replace(CONFIGS["clip"], decoder=decoder)
    found = load_tokenizer(tmp_path, config)
    assert found.encode("<image>\na", add_special_tokens=False).ids == plain
    assert found.get_vocab_size() == rows
    said = capsys.readouterr().err
    assert f"the {rows} embedding rows have none for 2 added tokens" in said
    with pytest.raises(InputError, match=f"id {rows + 1} exceeds the {rows - 1} embedding rows"):
        narrow = dataclasses.replace(decoder, vocab_size=rows - 1)
        load_tokenizer(tmp_path, dataclasses.replace(config, decoder=narrow))


@pytest.mark.parametrize("kind", ["llava_onevision_0.5b", "llava_onevision_7b"])
def test_presets_have_the_published_numbers(kind):
    config = families.preset(kind)
    assert config.tokens_per_frame == 196
    assert config.visual_tokens(32) == 32 * 196 + 1
    params = families.abstract_params(config)
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params["decoder"]))
    assert count == {"llava_onevision_0.5b": 494_032_768, "llava_onevision_7b": 7_615_616_512}[kind]
