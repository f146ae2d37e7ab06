"""Adapters: numbers and gradients of PyTorch, PEFT's files, and a step that trains nothing else."""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import originals
from tests.batches import SMALL, random_batch
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.checkpoints import huggingface
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.errors import InputError
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.models.lora import (
    PROJECTIONS,
    Lora,
    adapters_of,
    init_adapters,
    join,
    merge,
    merging,
    scaled,
)
from tpo_jax.models.vlm import cast
from tpo_jax.objectives.preference import Objective
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings, to_global
from tpo_jax.training.state import Optimizer, make_optimizer, new_state
from tpo_jax.training.step import Compute, make_scorer, make_step

torch, transformers = originals.torch, originals.transformers
LORA = Lora(rank=3, alpha=7.0)
SOME = Lora(rank=2, alpha=5.0, targets=("v_proj", "o_proj", "gate_proj", "down_proj"))


def random_adapters(lora, params, seed=0):
    """As after some training: no factor is zero."""
    adapters, draws = init_adapters(lora, params, seed), np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * draws.standard_normal(x.shape, np.float32), adapters)


def logits(config, params, ids):
    decoder = families.bind(config, params).decoder
    return decoder.head(
        decoder.sequence(PrefixStream(decoder.embed(ids), jnp.ones(ids.shape, bool)))
    )


class Adapted(torch.nn.Module):
    def __init__(self, base, a, b, scale):
        super().__init__()
        self.base, self.scale = base, scale
        self.a = torch.nn.Parameter(torch.tensor(np.asarray(a)))
        self.b = torch.nn.Parameter(torch.tensor(np.asarray(b)))

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a) @ self.b


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    original = originals.Original(originals.LONGVA)
    directory = tmp_path_factory.mktemp("checkpoint")
    originals.write_checkpoint(directory, original)
    return original, load_model(directory).params


@pytest.mark.parametrize("lora", [LORA, SOME])
def test_logits_and_gradients_are_those_of_torch(lora, checkpoint, record_property):
    original, params = copy.deepcopy(checkpoint)
    config = originals.LONGVA
    ids = np.random.default_rng(1).integers(0, config.decoder.vocab_size, (2, 12))
    adapters = random_adapters(lora, params)
    weight = np.random.default_rng(2).standard_normal((*ids.shape, config.decoder.vocab_size))
    weight = weight.astype(np.float32)

    def ours(adapters):
        found = logits(config, scaled(join(params, adapters), lora), jnp.asarray(ids))
        return (found * weight).sum(), found

    gradients, found = jax.jit(jax.grad(ours, has_aux=True))(adapters)

    torch_adapters = {}
    for target in lora.targets:
        part = adapters["decoder"]["layers"][PROJECTIONS[target]]
        for i, layer in enumerate(original.model.layers):
            block = layer.self_attn if hasattr(layer.self_attn, target) else layer.mlp
            module = Adapted(
                getattr(block, target), part["lora_a"][i], part["lora_b"][i], lora.scale
            )
            setattr(block, target, module)
            torch_adapters[PROJECTIONS[target], i] = module
    theirs = original.lm_head(original.model(torch.tensor(ids)).last_hidden_state)
    difference = np.abs(found - theirs.detach().numpy()).max()
    record_property(
        "parity", ("LoRA logits", "x".join(map(str, found.shape)), float(difference), 1e-4)
    )
    assert difference <= 1e-4
    (theirs * torch.tensor(weight)).sum().backward()
    for (name, i), module in torch_adapters.items():
        for leaf, expected in (("lora_a", module.a.grad), ("lora_b", module.b.grad)):
            gradient = np.asarray(gradients["decoder"]["layers"][name][leaf][i])
            error = np.linalg.norm(gradient - expected.numpy()) / np.linalg.norm(expected.numpy())
            assert error <= 1e-5, (name, i, leaf, error)


def test_merged_and_peft(checkpoint, tmp_path):
    """PEFT's adapters on the original decoder are ours, beside the weights or in them."""
    original, params = checkpoint
    config = originals.LONGVA
    adapters = random_adapters(SOME, params)
    ids = np.random.default_rng(1).integers(0, config.decoder.vocab_size, (2, 12))
    decoded = jax.jit(functools.partial(logits, config))
    beside = decoded(scaled(join(params, adapters), SOME), ids)
    save_adapters(tmp_path / "adapters", config, SOME, adapters, "base")
    # The buffers of the kernels are given up.
    merged = merge(join(jax.tree.map(jnp.copy, params), adapters), SOME)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(decoded(merged, ids), beside, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["adapters"]

    peft = pytest.importorskip("peft", reason="compares with PEFT's own loading")
    causal = transformers.Qwen2ForCausalLM(original.qwen_config)
    causal.load_state_dict(
        {"lm_head.weight": original.lm_head.weight}
        | {
            f"model.{name}": value
            for name, value in original.model.state_dict().items()
            if not name.startswith(("vision_tower", "mm_projector"))
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # PEFT only warns of missing and unexpected tensors
        model = peft.PeftModel.from_pretrained(causal, tmp_path / "adapters")
    names = {name for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert len(names) == len(SOME.targets) * config.decoder.layers
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
        in_weights = model.merge_and_unload()(torch.tensor(ids)).logits.numpy()
    assert np.abs(theirs - beside).max() <= 1e-5
    assert np.abs(in_weights - theirs).max() <= 1e-4


@pytest.mark.parametrize(
    "config", [originals.LONGVA, originals.LLAVA_VIDEO], ids=["clip", "siglip"]
)
def test_base_and_adapters_give_back_the_trained_model(config, tmp_path):
    """Whatever trained beside the adapters is in their directory, to the bit."""
    original = originals.Original(config)
    originals.write_checkpoint(tmp_path / "base", original)
    base = load_model(tmp_path / "base").params
    draws = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: x + draws.standard_normal(x.shape, np.float32),
        {name: part for name, part in base.items() if name != "decoder"},
    )
    trained = join(random_adapters(SOME, base), moved)
    save_adapters(tmp_path / "adapters", config, SOME, trained, "base")
    values = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert values["modules_to_save"] == ["mm_projector"]
    saved = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    beside = load_file(tmp_path / "adapters" / "non_lora_trainables.safetensors")
    assert ("model.image_newline" in beside) == config.has_newline

    # Into the checkpoint, as any loader of tensors by name would.
    save_model(
        tmp_path / "expected",
        config,
        merge(
            trained
            | {"decoder": join(jax.tree.map(jnp.copy, base["decoder"]), trained["decoder"])},
            SOME,
        ),
        None,
    )
    expected = load_model(tmp_path / "expected").params
    prefix = "base_model.model."
    tensors = beside | {
        name.removeprefix(prefix): x for name, x in saved.items() if ".lora_" not in name
    }
    for path in (tmp_path / "base").glob("*.safetensors"):
        held = load_file(path)
        found = tensors.keys() & held.keys()
        save_file(held | {name: tensors.pop(name) for name in found}, path, {"format": "pt"})
    assert not tensors
    found = load_model(tmp_path / "base").params
    rows, layers = huggingface.weights(config).leaves, {}
    for projection in adapters_of(trained):
        names = rows[f"decoder/layers/{projection}/kernel"].names
        for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            keys = [prefix + name.replace("weight", f"{theirs}.weight") for name in names]
            stack = jnp.asarray(np.stack([saved[key].T for key in keys]))
            layers.setdefault(projection, {})[leaf] = stack
    found = merge(join(found, {"decoder": {"layers": layers}}), SOME)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_peft_loads_a_trained_projector(checkpoint, tmp_path):
    original, params = checkpoint
    peft = pytest.importorskip("peft", reason="compares with PEFT's own loading")
    moved = jax.tree.map(lambda x: x + 0.5, params["projector"])
    trained = random_adapters(SOME, params) | {"projector": moved}
    save_adapters(tmp_path / "adapters", originals.LONGVA, SOME, trained, "base")
    assert not (tmp_path / "adapters" / "non_lora_trainables.safetensors").exists()
    causal = transformers.Qwen2ForCausalLM(original.qwen_config)
    causal.model.mm_projector = copy.deepcopy(original.model.mm_projector)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = peft.PeftModel.from_pretrained(causal, tmp_path / "adapters")
    merged = model.merge_and_unload().model.mm_projector
    for i, name in ((0, "fc1"), (2, "fc2")):
        np.testing.assert_array_equal(merged[i].weight.detach().numpy().T, moved[name]["kernel"])
        np.testing.assert_array_equal(merged[i].bias.detach().numpy(), moved[name]["bias"])


def test_merging_holds_one_layer_of_a_stack_in_float32():
    """A float32 copy of a 7B stack takes 7.6 GB, beside the 3.8 of the stack and of the result."""
    stack, a, b = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((16, 256, 512), jnp.bfloat16),
            ((16, 256, 2), jnp.float32),
            ((16, 2, 512), jnp.float32),
        )
    )
    program = merging(1.0, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    used = program.lower(stack, a, b).compile().memory_analysis()
    assert used.temp_size_in_bytes < 1.25 * 2 * stack.size


def test_bfloat16_kernels_are_merged_in_float32(checkpoint):
    params = cast(checkpoint[1], jnp.bfloat16)
    adapters = random_adapters(SOME, params)
    before = jax.tree.map(np.asarray, params)
    merged = jax.tree.map(np.asarray, merge(join(params, adapters), SOME))
    changed = jax.tree.map(lambda a, b: a.tobytes() != b.tobytes(), merged, before)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, other in jax.tree_util.tree_leaves_with_path(changed)
        if other
    }
    assert paths == {f"decoder/layers/{PROJECTIONS[target]}/kernel" for target in SOME.targets}
    part = adapters["decoder"]["layers"]["v"]
    product = np.einsum("lir,lro->lio", *map(np.asarray, part.values())) * SOME.scale
    kernel = before["decoder"]["layers"]["v"]["kernel"].astype(np.float32)
    found = merged["decoder"]["layers"]["v"]["kernel"].astype(np.float32)
    assert np.abs(found - (kernel + product)).max() <= 2**-8 * np.abs(kernel + product).max()


def run(params, batch, compute, freeze, *, mesh=None, steps=2):
    """(state at step 0, state after the steps, metrics of the first step), NumPy."""
    optimizer = make_optimizer(Optimizer(weight_decay=0.1), lambda _: 1e-2)
    initial = lambda p: new_state(p, optimizer, freeze, LORA, seed=3)  # noqa: E731
    step = make_step(SMALL, Objective(beta=0.3, alpha=0.0), compute, optimizer, LORA)
    if mesh is None:
        state, step = jax.jit(initial)(params), jax.jit(step)
    else:
        shardings = parameter_shardings(mesh, jax.eval_shape(initial, params))
        state = jax.jit(initial, out_shardings=shardings)(params)
        step, batch = jax.jit(step, out_shardings=(shardings, None)), to_global(batch, mesh)
    first = jax.device_get(state)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        state, metrics = step(state, batch)
        for _ in range(steps - 1):
            state, _ = step(state, batch)
    return first, jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def base():
    """bfloat16 weights, and a batch that knows their log-probabilities."""
    params = cast(random_params(SMALL), jnp.bfloat16)
    batch = random_batch(B=8, absent=True)
    logps = jax.jit(make_scorer(SMALL, Compute("float32", "none")))(params, batch)
    return params, dataclasses.replace(batch, reference_logps=np.asarray(logps))


FREEZE = ("tower", "projector", "newline")


@pytest.fixture(scope="module")
def trained(base):
    return run(*base, Compute("float32", "full"), FREEZE)


def test_nothing_but_adapters_trains(base, trained):
    params, _ = base
    first, last, metrics = trained
    assert metrics["losses/dpo"] == np.float32(math.log(2))
    assert metrics["losses/total"] == np.float32(math.log(2))
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(last.params)}
    assert names == {"lora_a", "lora_b"}
    assert adapters_of(last.params).keys() == set(PROJECTIONS.values())
    adapters = sum(x.size for x in jax.tree.leaves(last.params))
    assert sum(x.size for x in jax.tree.leaves(last.opt)) <= 2 * adapters + 4
    for a, b in zip(jax.tree.leaves(last.frozen), jax.tree.leaves(first.frozen), strict=True):
        assert a.dtype == jnp.bfloat16 and a.tobytes() == b.tobytes()
    assert jax.tree.structure(last.frozen) == jax.tree.structure(jax.device_get(params))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, last.params, first.params)
    assert all(jax.tree.leaves(moved))


def assert_near(found, expected):
    """Each tensor within 1e-3 of its norm: Adam divides small gradients by themselves."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)


def test_accumulation_and_remat_on_a_mesh(base, trained):
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    compute = Compute("float32", "dots", micro_batches=4, head_chunk=4)
    found = run(*base, compute, FREEZE, mesh=mesh)
    assert_near(found[1].params, trained[1].params)
    # Drawn on any mesh the same.
    for a, b in zip(*(jax.tree.leaves(x[0].params) for x in (found, trained)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_parts_train_beside_adapters(base):
    params, batch = base
    optimizer = make_optimizer(Optimizer(), lambda _: 1e-2)
    step = make_step(SMALL, Objective(), Compute("float32", "none"), optimizer, LORA)

    def stepped(params):
        return step(new_state(params, optimizer, ("tower",), LORA, seed=3), batch)[0]

    last = jax.eval_shape(stepped, params)
    assert last.params.keys() == {"decoder", "projector", "newline"}
    assert last.frozen.keys() == {"decoder", "tower"}


def test_wrong_settings_are_named():
    for wrong, message in (
        ({"rank": -1}, "lora.rank=-1"),
        ({"alpha": 0.0}, "lora.alpha=0.0"),
        ({"targets": ("q",)}, r"lora.targets=\('q',\) must be some of q_proj"),
        ({"targets": ()}, "lora.targets"),
    ):
        with pytest.raises(InputError, match=message):
            Lora(**wrong)
