"""Training with another model as the reference: `model.reference`."""

import copy
import dataclasses
import shutil
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from tests.test_train import opened
from tests.tiny_run import final_state, metrics, same_bits, tiny_config
from tpo_jax import families
from tpo_jax import train as command
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.errors import InputError
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.train import train
from tpo_jax.training import loop
from tpo_jax.training.experiment import read
from tpo_jax.training.reference import Reference
from tpo_jax.training.step import make_scorer
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer, world_texts


@pytest.fixture(scope="module")
def model(tiny_world):
    """The config of the tiny run's model: a preset, with a vocabulary that holds the tokenizer."""
    mixture, _ = opened(tiny_config(tiny_world))
    return mixture.parts[0].model


@pytest.fixture(scope="module")
def begun(tiny_world, finished_run, model, tmp_path_factory):
    """A run from the trained model, with what that one began with as the reference: the config, the
    working directory, and the share of a model that lay on the devices when the weights were read.
    """
    root, config = tmp_path_factory.mktemp("begun"), tiny_config(tiny_world)
    for name in ("shards", "held_out"):
        ignored = shutil.ignore_patterns("reference-*")
        shutil.copytree(tiny_world / name, root / name, ignore=ignored)
    save_model(root / "first", model, families.init_params(model, 0), tiny_world / "tokenizer")
    config.data.shards, config.data.eval_shards = str(root / "shards"), str(root / "held_out")
    config.model.preset = config.model.tokenizer = ""
    config.model.checkpoint = str(finished_run / "model")
    config.model.reference = str(root / "first")
    config.train.num_steps = 3
    config.train.checkpoint_every = 1
    held, opening = [], command.open_weights

    def open_weights(*arguments):
        begin = opening(*arguments)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(begin.abstract))

        def load():
            held.append((sum(x.nbytes for x in jax.live_arrays()) - before) / size)
            return begin.load()

        return dataclasses.replace(begin, load=load)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "open_weights", open_weights)
        before = sum(x.nbytes for x in jax.live_arrays())
        train(config, root / "run")
    return config, root / "run", held[0]


@pytest.fixture
def config(begun):
    return copy.deepcopy(begun[0])


def log_probabilities(config, directory) -> np.ndarray:
    """Those of all pairs by the model of a directory, `[pairs, 2]`."""
    experiment, (mixture, _) = read(config), opened(config)
    mesh, (pairs,) = make_mesh(dataclasses.asdict(experiment.mesh)), mixture.parts
    how = {"mesh": mesh, "dtype": None, "weights": config.model.weights}
    scorer = make_scorer(pairs.model, experiment.compute)
    return Reference(scorer, load_model(directory, **how).params, mesh).compute(pairs.once())


def test_the_first_loss_is_that_of_two_models(begun, config):
    _, workdir, held = begun
    assert held < 0.01  # the reference's memory is free again
    (pairs,) = opened(config)[0].parts
    index, models = pairs[0].pair_index.ravel(), (config.model.checkpoint, config.model.reference)
    policy, base = (log_probabilities(config, model)[index] for model in models)
    ratios = 0.3 * (policy - base)
    expected = {
        "losses/dpo": np.log1p(np.exp(ratios[:, 1] - ratios[:, 0])).mean(),
        "ref_logps/chosen": base[:, 0].mean(),
    }
    first = metrics(workdir)[0]
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert first["losses/dpo"] < np.log(2) / 2  # the policy is ahead of the reference


def test_held_out_pairs_have_the_same_reference(begun, model):
    _, workdir, _ = begun
    record = next(r for r in metrics(workdir) if "eval/pairs" in r)
    (cache,) = (workdir.parent / "held_out").glob("reference-*.npz")
    expected = np.nanmean(np.load(cache)["logps"], axis=0)
    found = [record["eval/ref_logps/chosen"], record["eval/ref_logps/rejected"]]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)
    assert record["eval/losses/dpo"] < np.log(2) / 2


def test_adapters_on_a_quantized_decoder_have_a_quantized_reference(
    begun, config, tmp_path, monkeypatch
):
    shards = begun[1].parent / "shards"
    (exact,) = shards.glob("reference-*.npz")
    config.model.weights, config.lora.rank, config.train.eval_every = "int8", 2, 0
    monkeypatch.setattr(command, "compile_meanwhile", lambda step, *_, **__: step)
    monkeypatch.setattr(loop, "run", Mock(side_effect=InterruptedError))  # no step is needed
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run")
    (cache,) = set(shards.glob("reference-*.npz")) - {exact}
    found, expected = np.load(cache)["logps"], log_probabilities(config, config.model.reference)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(found - np.load(exact)["logps"]).max() > 1e-2


def test_a_run_resumes_with_the_same_reference_and_refuses_another(
    begun, config, tmp_path, monkeypatch
):
    whole, parts = begun[1], tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "3")
    shutil.rmtree(parts / "model")
    monkeypatch.setattr(Reference, "compute", None)  # not reached: it is cached
    train(config, parts)
    assert metrics(parts) == metrics(whole)
    assert same_bits(final_state(parts, 3), final_state(whole, 3))

    other = copy.deepcopy(config)
    other.model.reference = config.model.checkpoint
    nothing = lambda self, pipeline, *_: np.zeros((len(pipeline.shards), 2))  # noqa: E731
    monkeypatch.setattr(Reference, "logps", nothing)
    with pytest.raises(InputError, match="a checkpoint of a run with other reference;"):
        train(other, whole)
    copied = shutil.copytree(config.model.reference, tmp_path / "copied")
    config.model.reference = str(copied)
    with pytest.raises(InputError, match=r"another run \(model\.reference: '.*first' -> '.*copied"):
        train(config, whole)


def test_a_model_that_cannot_be_the_reference_is_named(config, model, tiny_world, tmp_path):
    other, config.model.reference = tmp_path / "other", str(tmp_path / "other")

    def refused(message, model=None, tokenizer=tiny_world / "tokenizer"):
        if model:
            save_model(other, model, families.init_params(model, 0), tokenizer)
        with pytest.raises(InputError, match=message) as error:
            train(config, tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

    less = dataclasses.replace(model.decoder, layers=1)
    refused(
        rf"model\.reference=.*other: its decoder\.layers is 1, that of .* {model.decoder.layers}$",
        dataclasses.replace(model, decoder=less),
    )
    video = families.preset("tiny_llava_video")
    refused(r"model\.reference=.*other: its \w+(\.\w+)? is .*, that of the trained model", video)
    save_tokenizer(train_tokenizer(world_texts(0, 20), vocab_size=380), tmp_path / "words")
    refused("its tokenizer is not that of the trained model", model, tmp_path / "words")
    config.model.reference = "nowhere"
    refused("nowhere/config.json does not exist")
    config.objective.token_kl = 0.1
    refused("model.reference=nowhere is for an objective that reads the cached log-prob")
