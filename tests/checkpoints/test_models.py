"""Native model directories: round trip, sharded loading, replacement, one-line errors."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpo_jax import families
from tpo_jax.checkpoints.models import load_config, load_model, open_model, save_model
from tpo_jax.errors import InputError
from tpo_jax.models import vlm
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings

CONFIG = families.preset("tiny_llava_video")


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    abstract = families.abstract_params(CONFIG)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), abstract)


@pytest.fixture
def saved(tmp_path, params):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    save_model(tmp_path / "model", CONFIG, params, source)
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip(tmp_path, params, dtype):
    params = vlm.cast(params, dtype)
    save_model(tmp_path / "model", CONFIG, params, None)
    loaded = load_model(tmp_path / "model", dtype=None)
    assert loaded.config == CONFIG
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {jnp.dtype(dtype)}
    assert_equal(loaded.params, params)
    assert_equal(load_model(tmp_path / "model").params, vlm.cast(params, jnp.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_tokenizer_travels(saved):
    directory = load_model(saved).tokenizer_directory
    assert (directory / "tokenizer.json").read_text() == "{}"


def test_a_relative_path_works(saved, params, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert_equal(load_model("model").params, params)
    stored = open_model("model").params["decoder"]["norm"]["scale"]
    np.testing.assert_array_equal(np.asarray(stored), params["decoder"]["norm"]["scale"])


def test_sharded(saved, params):
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    loaded = load_model(saved, mesh=mesh).params
    wanted = parameter_shardings(mesh, params)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, loaded, wanted))
    assert_equal(loaded, params)
    save_model(saved, CONFIG, loaded, saved)  # sharded arrays out, the same directory replaced
    assert (saved / "tokenizer.json").is_file()
    assert_equal(load_model(saved).params, params)


def test_settings_override(saved):
    config = load_config(saved, pooling="max", max_length=7, rope_theta=5.0)
    assert (config.pooling, config.max_length, config.decoder.rope_theta) == ("max", 7, 5.0)


def test_refuses_to_replace_something_else(tmp_path, params):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="not a native model directory"):
        save_model(tmp_path / "model", CONFIG, params, None)


def test_failed_save_leaves_nothing(tmp_path, params):
    class Stubborn:
        shape, dtype = params["newline"].shape, params["newline"].dtype

    with pytest.raises(ValueError):
        save_model(tmp_path / "model", CONFIG, {**params, "newline": Stubborn()}, None)
    assert not list(tmp_path.iterdir())


def edit(directory, change):
    values = json.loads((directory / "config.json").read_text())
    change(values)
    (directory / "config.json").write_text(json.dumps(values))


def test_errors(saved, tmp_path, params):
    with pytest.raises(InputError, match=r"nowhere/config.json does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="newline"):
        load_model(saved, newline="sometimes")
    with pytest.raises(InputError, match=r"--frame_tokens=9 is no setting of Llava.*pooling"):
        load_config(saved, frame_tokens=9)
    with pytest.raises(InputError, match=r"config.json: a file, not a model directory"):
        load_model(saved / "config.json")
    run = tmp_path / "run"
    run.mkdir()
    saved.rename(run / "model")
    with pytest.raises(InputError, match=r"config.json does not exist; did you mean .*run/model\?"):
        load_model(run)
    (run / "config.json").write_text("{}")  # of a run
    with pytest.raises(InputError, match=r"architectures is None.*; did you mean .*run/model\?"):
        load_model(run)
    (run / "model").rename(saved)
    edit(saved, lambda v: v["model"]["tower"].update(mlp_width=7))
    with pytest.raises(InputError, match=r"tower/layers/fc1/bias has shape .* the config says"):
        load_model(saved)
    edit(saved, lambda v: v["model"].pop("tower"))
    with pytest.raises(InputError, match=r"config.json: .*tower"):
        load_model(saved)
    edit(saved, lambda v: v.update(version=99))
    with pytest.raises(InputError, match="version 99"):
        load_model(saved)
    edit(saved, lambda v: v.update(format=None, architectures=["LlamaForCausalLM"]))
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        load_model(saved)


def test_nan_is_named(tmp_path, params):
    broken = {**params, "newline": params["newline"].at[3].set(jnp.nan)}
    save_model(tmp_path / "model", CONFIG, broken, None)
    with pytest.raises(InputError, match="newline holds NaN"):
        load_model(tmp_path / "model")


def test_missing_params(saved):
    (saved / "params").rename(saved / "elsewhere")
    with pytest.raises(InputError, match="no params/"):
        load_model(saved)
    (saved / "params").mkdir()
    with pytest.raises(InputError, match="not a complete Orbax checkpoint"):
        load_model(saved)


ANYTHING = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3)


@pytest.fixture(scope="module")
def native_config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("native")
    model = dataclasses.asdict(CONFIG) | {"stills": dataclasses.asdict(CONFIG.images)}
    return directory, {"format": "tpo_jax", "version": 1, "model": model}


@hypothesis.given(data=st.data())
def test_any_config_is_read_or_refused_in_one_line(native_config, data):
    directory, values = native_config
    values = json.loads(json.dumps(values))
    part = data.draw(st.sampled_from((values, values["model"], *values["model"].values())))
    part = part if isinstance(part, dict) else values["model"]
    for key in data.draw(st.sets(st.sampled_from(sorted(part)), min_size=1, max_size=2)):
        part[key] = data.draw(ANYTHING | st.lists(ANYTHING, max_size=2), key)
    (directory / "config.json").write_text(json.dumps(values))
    try:
        config = load_config(directory)
    except InputError as error:
        assert str(directory) in str(error) and "\n" not in str(error)
    else:
        families.abstract_params(config)
