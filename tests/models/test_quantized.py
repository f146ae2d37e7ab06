"""Quantized decoders: the bound on the error of a weight, loading, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.random_params import random_params
from tests.tiny_run import same_bits
from tpo_jax import families
from tpo_jax.checkpoints.fingerprint import weights_fingerprint
from tpo_jax.checkpoints.models import load_model, open_model, save_model
from tpo_jax.errors import InputError
from tpo_jax.models import vlm
from tpo_jax.models.quantized import GROUP, LARGEST, dequantize, quantize, quantize_params
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.training import experiment
from tpo_jax.training.state import TrainState
from tpo_jax.training.weights import open_weights, save_result

CONFIG = families.preset("tiny_longva")


@settings(max_examples=10)
@given(
    st.sampled_from(sorted(LARGEST)),
    st.sampled_from([8, GROUP, 3 * GROUP, GROUP + 64]),
    st.floats(1e-6, 1e6),
    st.integers(0, 2**31),
)
def test_a_weight_is_off_by_half_a_scale_at_most(weights, inputs, size, seed):
    kernel = size * np.random.default_rng(seed).standard_normal((2, inputs, 3), np.float32)
    kernel[0, :, 0] = 0  # a channel without weights
    values, scale = quantize(jnp.asarray(kernel), weights)
    assert values.dtype == weights and scale.dtype == jnp.float32
    found = np.stack([dequantize(v, s, jnp.float32) for v, s in zip(values, scale, strict=True)])
    bound = np.repeat(np.asarray(scale), inputs // scale.shape[1], axis=1) / 2
    assert (np.abs(found - kernel) <= bound * (1 + 1e-5)).all()
    assert np.isfinite(found).all() and not found[0, :, 0].any()
    assert (scale.shape[1] == 1) == (weights == "int8" or inputs <= GROUP)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_world):
    """A native directory in bfloat16."""
    folder = tmp_path_factory.mktemp("base") / "model"
    params = vlm.cast(random_params(CONFIG), jnp.bfloat16)
    save_model(folder, CONFIG, params, tiny_world / "tokenizer")
    return folder


@pytest.mark.parametrize("weights", LARGEST)
def test_loading_quantizes_what_is_stored_on_any_mesh(base, weights):
    expected = quantize_params(jax.tree.map(jnp.asarray, open_model(base).params), weights)
    expected = jax.device_get(expected)
    assert same_bits(jax.device_get(load_model(base, dtype=None, weights=weights).params), expected)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    loaded = load_model(base, dtype=jnp.float32, mesh=mesh, weights=weights).params
    assert same_bits(jax.device_get(loaded), vlm.cast(expected, jnp.float32))
    part = loaded["decoder"]["layers"]["q"]
    assert part["kernel"].dtype == weights and part["kernel"].sharding.spec[1:] == (
        ("fsdp", "context"),
        "tensor",
    )
    assert part["kernel_scale"].sharding.spec[2] == "tensor"


def test_the_fingerprint_knows_how_weights_are_stored(base):
    found = [load_model(base, dtype=None, weights=weights).params for weights in ("", *LARGEST)]
    assert len(set(map(weights_fingerprint, found))) == 3


def config_of(**fields):
    config = experiment.base()
    config.model.weights = "int8"
    config.update_from_flattened_dict(fields)
    return config


def test_what_is_refused_is_one_line(base, tmp_path, tiny_world):
    quantized = load_model(base, dtype=None, weights="int8").params
    with pytest.raises(InputError, match="the decoder is quantized"):
        save_model(tmp_path / "out", CONFIG, quantized, None)
    with pytest.raises(InputError, match=r"model.weights='int5' must be one of int8, int4"):
        experiment.read(config_of(**{"model.weights": "int5"}))
    with pytest.raises(InputError, match=r"weights=int8 is for a decoder that is not trained"):
        experiment.read(config_of())
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1}, jax.devices()[:1])
    preset = {"model.preset": "tiny_longva", "model.tokenizer": str(tiny_world / "tokenizer")}
    with pytest.raises(InputError, match=r"model.weights=int8 needs a model.checkpoint"):
        open_weights(experiment.read(config_of(**preset, **{"lora.rank": 2})), mesh)
    gone = {"model.checkpoint": str(tmp_path / "gone"), "train.freeze": ("tower", "decoder")}
    newline = jax.device_put(np.ones(3, np.float32), jax.NamedSharding(mesh, jax.P()))
    state = TrainState({"newline": newline}, {}, (), jnp.zeros((), jnp.int32))
    with pytest.raises(InputError, match=r"gone.*bring it back and run again"):
        save_result(experiment.read(config_of(**gone)), tmp_path, CONFIG, state, tmp_path)
    assert not list(tmp_path.iterdir())
