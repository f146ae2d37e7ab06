"""The average command: the mean of models of either layout, and what it refuses."""

import jax
import numpy as np
import pytest

from tests.commands import call
from tpo_jax import families
from tpo_jax.checkpoints import averaging
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer

CONFIG = families.preset("tiny_longva")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two native models and a published one in bfloat16, all with the same tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    save_tokenizer(train_tokenizer(["What happens?"], vocab_size=270), folder / "tokenizer")
    for seed, name in enumerate(("base", "trained")):
        params = families.init_params(CONFIG, seed)
        save_model(folder / name, CONFIG, params, folder / "tokenizer")
    (folder / "published").mkdir()
    export_model(folder / "published", CONFIG, families.init_params(CONFIG, 2), None, "bfloat16")
    file = folder / "tokenizer/tokenizer.json"
    (folder / "published/tokenizer.json").write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("start", ["base", "published"])
def test_every_parameter_is_the_weighted_mean(models, tmp_path, start):
    flags = {"models": f"{models / start},{models / 'trained'}", "shares": "3e300,1e300"}
    [done] = call("average", flags | {"output": tmp_path / "mean"})
    assert done.code == 0 and done.out == f"{tmp_path / 'mean'}\n"
    one, other, mean = (
        load_model(path, dtype=None) for path in (models / start, models / "trained", done.out[:-1])
    )
    assert mean.config == other.config and (tmp_path / "mean/tokenizer.json").exists()

    def check(x, y, z):
        assert z.dtype == np.float32
        wanted = 0.75 * np.asarray(x, np.float64) + 0.25 * np.asarray(y, np.float64)
        np.testing.assert_allclose(z, wanted, rtol=1e-6, atol=1e-6)

    jax.tree.map(check, one.params, other.params, mean.params)


def test_all_of_one_model_is_that_model(models, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "BLOCK", 10_000)  # of most parameters, no whole number of times
    averaging.average([models / "base", models / "trained"], [0.0, 1.0], tmp_path / "mean")
    found, trained = (load_model(path).params for path in (tmp_path / "mean", models / "trained"))
    jax.tree.map(np.testing.assert_array_equal, found, trained)


def test_what_has_no_mean_is_one_line(models, tmp_path):
    two, output = f"{models / 'base'},{models / 'trained'}", tmp_path / "mean"
    other = families.preset("tiny_llava_video")
    save_model(tmp_path / "other", other, families.init_params(other, 0), models / "tokenizer")
    save_tokenizer(train_tokenizer(["Who is it?"], vocab_size=265), tmp_path / "tokens")
    save_model(tmp_path / "words", CONFIG, families.init_params(CONFIG, 0), tmp_path / "tokens")
    wrong = [
        ({}, "--models= must be two directories or more"),
        ({"models": str(models / "base")}, "must be two directories or more"),
        ({"models": two, "shares": "1"}, "must be one number of 0 or more for each of 2 models"),
        ({"models": two, "shares": "1,-1"}, "must be one number of 0 or more"),
        ({"models": two, "shares": "1,nan"}, "must be one number of 0 or more"),
        ({"models": two, "shares": "a,b"}, "--shares=a,b must be one number of 0 or more"),
        ({"models": two, "shares": "0,0"}, "--shares=0,0: the sum is 0"),
        ({"models": two, "shares": "1e308,1e308"}, "--shares=1e308,1e308: the sum is inf"),
        ({"models": f"{two},{tmp_path / 'other'}"}, "other is no model of the config of"),
        ({"models": f"{two},{tmp_path / 'words'}"}, "differ in their tokenizers"),
        ({"models": f"{two},{tmp_path / 'none'}"}, "none"),
        ({"models": two, "output": models / "base"}, "base exists; name a new directory"),
    ]
    for done, (_, message) in zip(
        call("average", *({"output": output} | flags for flags, _ in wrong)), wrong, strict=True
    ):
        assert done.code == 2 and message in done.err, done
        assert len(done.err.splitlines()) == 1 and done.out == ""
    assert not output.exists()
