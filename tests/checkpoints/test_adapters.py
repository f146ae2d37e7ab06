"""PEFT directories as input: what a run wrote gives back its model to the bit, and what PEFT itself
wrote gives its numbers.
"""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpo_jax
from tests.commands import call
from tpo_jax import families
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.errors import InputError
from tpo_jax.inference.model import load_processor
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.models.lora import Lora, init_adapters, join, merge
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.training import experiment
from tpo_jax.training.weights import open_weights

CONFIG = families.preset("tiny_llava_video")
LORA = Lora(rank=3, alpha=7.0)


def random_like(tree, seed):
    draws = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * draws.standard_normal(x.shape, np.float32), tree
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_world):
    """A base model, the adapters of a run that trained projector and newline too, the result."""
    folder = tmp_path_factory.mktemp("adapters")
    params = families.init_params(CONFIG, 0)
    beside = random_like({name: params[name] for name in ("projector", "newline")}, 1)
    adapters = random_like(init_adapters(LORA, params, 0), 2)
    save_model(folder / "base", CONFIG, params, tiny_world / "tokenizer")
    save_adapters(folder / "adapters", CONFIG, LORA, join(adapters, beside), "base")
    whole = {**params, **beside, "decoder": join(params["decoder"], adapters["decoder"])}
    return folder, jax.device_get(merge(jax.tree.map(jnp.array, whole), LORA))


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


def test_a_run_s_adapters_give_its_model(trained):
    folder, expected = trained
    assert_same(load_model(folder / "base", adapters=folder / "adapters").params, expected)
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2, "context": 1})
    found = load_model(folder / "base", mesh=mesh, adapters=folder / "adapters").params
    kernel = found["decoder"]["layers"]["q"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and not kernel.sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_in_python_and_as_the_start_of_a_run(trained):
    folder, expected = trained
    alone = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 1}, jax.devices()[:1])
    model = tpo_jax.load(folder / "base", mesh=alone, adapters=folder / "adapters")
    assert_same(model.params, expected)
    # Split over eight devices it is another program, which some processors round otherwise.
    split = tpo_jax.load(folder / "base", mesh={}, adapters=folder / "adapters")
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2**-23)
    jax.tree.map(close, jax.device_get(split.params), expected)
    assert model.config == load_processor(folder / "base").config
    config = experiment.base()
    config.model.checkpoint, config.model.adapters = str(folder / "base"), str(folder / "adapters")
    assert_same(open_weights(experiment.read(config), alone).load(), expected)
    config.model.checkpoint, config.model.preset = "", "tiny_llava_video"
    with pytest.raises(InputError, match=r"model.adapters are for a model.checkpoint"):
        open_weights(experiment.read(config), alone)


def edit(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory, change):
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
BREAKS = {
    "no adapters": (lambda d: (d / "adapter_config.json").unlink(), "does not exist"),
    "other method": (lambda d: edit(d, peft_type="LOHA"), "peft_type is 'LOHA'"),
    "DoRA": (lambda d: edit(d, use_dora=True), "use_dora=True is not supported"),
    "PiSSA": (lambda d: edit(d, init_lora_weights="pissa"), "changes the base"),
    "rank": (lambda d: edit(d, r=0), "r=0"),
    "pattern": (lambda d: edit(d, rank_pattern={"q_proj": "big"}), "rank_pattern"),
    "pickled": (
        lambda d: (d / "non_lora_trainables.safetensors").rename(d / "non_lora_trainables.bin"),
        "non_lora_trainables.bin is pickled",
    ),
    "no weights": (
        lambda d: [p.unlink() for p in d.glob("*.safetensors")],
        "no .safetensors files",
    ),
    "half": (
        lambda d: edit_tensors(d, lambda t: t.pop(f"{Q}.lora_B.weight")),
        "q_proj.lora_B.weight is missing",
    ),
    "other model": (
        lambda d: edit_tensors(d, lambda t: t.update({f"{Q}.lora_A.weight": np.ones((3, 5))})),
        "belong to another model",
    ),
    "unknown": (
        lambda d: edit_tensors(d, lambda t: t.update({"base_model.model.extra": np.ones(2)})),
        "extra is not part of this model",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_is_not_read_is_one_line(trained, tmp_path, case):
    folder, _ = trained
    copy = shutil.copytree(folder / "adapters", tmp_path / "adapters")
    change, message = BREAKS[case]
    change(copy)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder / "base", adapters=copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_s_own_directories(tmp_path, rslora):
    """Ranks and alphas by pattern, some layers only: the logits are those that PEFT computes."""
    peft = pytest.importorskip("peft", reason="compares with PEFT's own adapters")
    from tests import originals

    torch, config = originals.torch, originals.LONGVA
    original = originals.Original(config)
    originals.write_checkpoint(tmp_path / "base", original)
    causal = originals.transformers.Qwen2ForCausalLM(original.qwen_config)
    state = original.model.state_dict()
    decoder = {
        f"model.{name}": value
        for name, value in state.items()
        if not name.startswith(("vision_tower", "mm_projector"))
    }
    causal.load_state_dict(decoder | {"lm_head.weight": original.lm_head.weight})
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "down_proj"],
        layers_to_transform=[0, 2],
        rank_pattern={"layers.0.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 10},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    model = peft.get_peft_model(causal, settings)
    model.save_pretrained(tmp_path / "adapters")
    ids = np.random.default_rng(1).integers(0, config.decoder.vocab_size, (2, 12))
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()

    def logits(params):
        decoder = families.bind(config, params).decoder
        hidden = decoder.sequence(PrefixStream(decoder.embed(ids), jnp.ones(ids.shape, bool)))
        return hidden @ decoder.head_kernel

    before = load_model(tmp_path / "base").params
    assert np.abs(logits(before) - theirs).max() > 1e-2
    found = logits(load_model(tmp_path / "base", adapters=tmp_path / "adapters").params)
    np.testing.assert_allclose(found, theirs, atol=1e-4)


def test_the_command_answers_as_the_merged_model(trained, tiny_world):
    folder, merged = trained
    save_model(folder / "merged", CONFIG, merged, tiny_world / "tokenizer")
    prompt = {"prompt": "What is there?", "max_new_tokens": 12}
    adapted = {"checkpoint": folder / "base", "adapters": folder / "adapters"}
    others = ({"checkpoint": folder / name} for name in ("merged", "base"))
    found, expected, base = call("generate", *(flags | prompt for flags in (adapted, *others)))
    assert found.code == 0, found.err
    assert (found.out == expected.out) and found.out != base.out
