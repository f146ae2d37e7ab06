"""The weights that a run begins with, and the model that it ends with."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from tpo_jax import families
from tpo_jax.checkpoints.huggingface import flatten
from tpo_jax.checkpoints.models import load_model, open_model, save_model, stream_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig, check_source, key_of
from tpo_jax.models.lora import join, merge
from tpo_jax.models.quantized import quantize_params
from tpo_jax.models.vlm import cast
from tpo_jax.parallel.programs import built_once
from tpo_jax.parallel.sharding import parameter_shardings
from tpo_jax.training.experiment import Experiment, Source
from tpo_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a run begins with; its weights are known by shape and dtype until they are loaded.

    Attributes:
        tokenizer: Directory.
        abstract: The parameters as `jax.ShapeDtypeStruct`.
        load: Returns the parameters on the mesh.
    """

    model: ModelConfig
    tokenizer: Path
    abstract: dict
    load: Callable[[], dict]


def open_weights(experiment: Experiment, mesh: jax.sharding.Mesh) -> Beginning:
    """Open the checkpoint, or describe the random weights of a preset, without loading either."""
    given = experiment.source
    check_source(given.checkpoint, given.preset)
    if given.checkpoint:
        opened = open_model(given.checkpoint, given.tower, **_length(given))
        abstract = stored_weights(given, opened.config)
        how = {"mesh": mesh, "dtype": None, "weights": given.weights, **_how(given)}
        load = lambda: load_model(given.checkpoint, **how).params  # noqa: E731
        return Beginning(opened.config, opened.tokenizer_directory, abstract, load)
    if given.tower or given.adapters:
        raise InputError("model.tower and model.adapters are for a model.checkpoint, not a preset")
    if given.weights:
        raise InputError(
            f"model.weights={given.weights} needs a model.checkpoint: the result is saved with its "
            "own weights, and a preset has none"
        )
    model = dataclasses.replace(families.preset(given.preset), **_length(given))
    if not given.tokenizer:
        raise InputError(f"model.preset={given.preset} needs model.tokenizer, a directory")
    # Random weights have no vocabulary of their own, so it grows to fit a larger tokenizer.
    ids = load_tokenizer(given.tokenizer).get_vocab_size()
    size = max(model.decoder.vocab_size, -(-ids // 128) * 128)
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocab_size=size))
    seed, dtype = experiment.schedule.seed, families.preset_dtype(given.preset)
    abstract = stored_weights(given, model)
    shardings = parameter_shardings(mesh, abstract)
    random = jax.jit(_make_random(model, seed, dtype), out_shardings=shardings)
    return Beginning(model, Path(given.tokenizer), abstract, random)


@built_once
def _make_random(model: ModelConfig, seed: int, dtype: str) -> Callable[[], dict]:
    """Build a function that returns random weights."""
    return lambda: cast(families.init_params(model, seed), dtype)


def open_reference(
    given: Source, begin: Beginning, mesh: jax.sharding.Mesh
) -> Callable[[], dict] | None:
    """Open the model of `model.reference`, without loading it.

    Returns:
        A function that loads its parameters on the mesh, as those of `model.checkpoint` are loaded;
        None if the reference is what the run begins with.

    Raises:
        InputError: What is wrong with the directory, or it is a model of other sizes, with other
            settings or another tokenizer than the one that the run begins with.
    """
    if not given.reference:
        return None
    where, length = f"model.reference={given.reference}", begin.model.max_length
    opened = open_model(given.reference, max_length=length)
    theirs, ours = (
        flatten({"family": families.of(model).name, **key_of(model)})
        for model in (opened.config, begin.model)
    )
    for name in sorted(theirs.keys() | ours.keys()):
        if (its := theirs.get(name)) != (own := ours.get(name)):
            field = name.replace("/", ".")
            raise InputError(f"{where}: its {field} is {its}, that of the trained model {own}")
    directories = opened.tokenizer_directory, begin.tokenizer
    texts = {load_tokenizer(directory, begin.model).to_str() for directory in directories}
    if len(texts) > 1:
        raise InputError(f"{where}: its tokenizer is not that of the trained model")
    how = {"mesh": mesh, "dtype": None, "weights": given.weights, "max_length": length}
    return lambda: load_model(given.reference, **how).params


def stored_weights(given: Source, model: ModelConfig) -> dict:
    """Return shapes and dtypes of the parameters that a run begins with, without loading any.

    Args:
        given: a checkpoint or a preset; a preset may have `weights`, to plan a run on a checkpoint
            of its sizes.
        model: sizes.

    Raises:
        InputError: what is wrong with the checkpoint.
    """
    if given.checkpoint:
        params = open_model(given.checkpoint, given.tower, **_length(given)).params
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    else:
        dtype = families.preset_dtype(given.preset)
        params = jax.eval_shape(lambda p: cast(p, dtype), families.abstract_params(model))
    if not given.weights:
        return params
    return jax.eval_shape(lambda p: quantize_params(p, given.weights), params)


def save_result(
    experiment: Experiment, workdir: Path, model: ModelConfig, state: TrainState, tokenizer: Path
) -> Path:
    """Save the trained model and, if there are any, its adapters; return the model's directory.

    After a run on a quantized decoder, adapters are merged into the checkpoint's own weights.

    Raises:
        InputError: the checkpoint of a quantized decoder cannot be read any more.
    """
    source, lora = experiment.source, experiment.lora
    if lora.rank:
        base = " + ".join(filter(None, (source.checkpoint, source.adapters)))
        save_adapters(workdir / "adapters", model, lora, state.params, base)
    trained: dict | Iterator[tuple[str, jax.Array]]
    if source.weights:
        trained = _onto_checkpoint(experiment, state)
    else:
        trained = join(state.params, state.frozen)
        trained = merge(trained, lora) if lora.rank else trained
    save_model(workdir / "model", model, trained, tokenizer, source.tower)
    return workdir / "model"


def _length(given: Source) -> dict[str, Any]:
    return {"max_length": given.max_length} if given.max_length else {}


def _how(given: Source) -> dict[str, Any]:
    """Return the arguments of `load_model` that every read of the checkpoint has."""
    return {"tower": given.tower, "adapters": given.adapters, **_length(given)}


def _onto_checkpoint(experiment: Experiment, state: TrainState) -> Iterator[tuple[str, jax.Array]]:
    """Return the trained model's (path, array) one by one; the quantized ones are freed first."""
    source, trained = experiment.source, flatten(state.params)
    mesh = jax.tree.leaves(state.params)[0].sharding.mesh
    jax.tree.map(lambda x: x.delete(), state.frozen)
    try:
        loaded = stream_model(source.checkpoint, mesh=mesh, **_how(source))
    except InputError as error:
        raise InputError(
            f"model.checkpoint={source.checkpoint}: the result is saved with its own weights, not "
            f"with those of model.weights={source.weights}: {error}; bring it back and run again"
        ) from error

    def leaf(path: str, x: jax.Array) -> jax.Array:
        before = path.removesuffix("kernel")
        if before + "lora_a" in trained:
            adapter = {name: trained[before + name] for name in ("lora_a", "lora_b")}
            return merge({"kernel": x, **adapter}, experiment.lora)["kernel"]
        return trained.get(path, x)

    return ((path, leaf(path, x)) for path, x in loaded.leaves)
