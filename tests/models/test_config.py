"""Configs of models, as keys of what is stored."""

import dataclasses

from tpo_jax import families
from tpo_jax.io.files import as_json, hash_of
from tpo_jax.models.config import key_of


def test_keys_of_models_do_not_change():
    """Reference caches and checkpoints hold them; a new field may not make those stale."""
    key = hash_of(key_of(families.preset("longva_7b")))
    assert key == "5bd0c03301a7b53a3997ad207e8306ec429efe05e1ee17fb1987ecb0430690af"


def test_a_key_holds_every_field_that_changes_numbers():
    model = families.preset("tiny_llava_video")
    decoder = dataclasses.replace(model.decoder, qkv_bias=False)
    changed = dataclasses.replace(model, decoder=decoder)
    assert key_of(changed) == key_of(model) | {
        "decoder": key_of(model)["decoder"] | {"qkv_bias": False}
    }
    for name in ("tiny_qwen3_vl", "tiny_qwen2_5_vl"):
        key, values = (x(families.preset(name)) for x in (key_of, as_json))
        for part in ("decoder", "tower"):
            own, every = key.pop(part), values.pop(part)
            assert own.items() <= every.items()
            assert not any(every[field] for field in every.keys() - {*own, "qkv_bias"})
        assert values.pop("text_after", "side") == "side"
        assert key == values
    model = dataclasses.replace(families.preset("tiny_qwen2_5_vl"), text_after="times")
    assert key_of(model)["text_after"] == "times"
