"""What makes the step fast changes none of its numbers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.batches import SMALL, random_batch
from tpo_jax import families
from tpo_jax.data.phrases import phrase_mask
from tpo_jax.models import classic
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.parallel.sharding import parameter_shardings, to_global
from tpo_jax.training.state import Optimizer, make_optimizer, new_state, split_params
from tpo_jax.training.step import Compute, make_scorer, make_step

OBJECTIVE = Objective(beta=0.3, alpha=0.5)
EXACT = Compute(dtype="float32", remat="none")


@functools.cache
def params():
    """Weights of the size that Qwen2 starts from (0.02), where float32 can be held to 1e-5."""
    values = jax.device_get(families.init_params(SMALL, seed=0))
    scale = np.float32(0.14)
    values["decoder"] = jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, values["decoder"])
    values["decoder"]["embed"]["embedding"] *= scale
    return jax.device_put(values)


def loss_and_gradient(token_logps, batch, freeze=("tower",)):
    trainable, frozen = split_params(params(), freeze)

    def loss(trainable):
        logps = token_logps(families.bind(SMALL, trainable | frozen), batch)
        mask = batch.target_mask
        return tpo_loss(logps, mask, batch.reference_logps, OBJECTIVE, denominators(mask))[0]

    return jax.jit(jax.value_and_grad(loss))(trainable)


def assert_same(found, expected, tolerance=1e-5):
    """Assert that every tensor agrees within `tolerance` of its norm.

    The absolute term is float32 rounding over all tensors: the tower's key biases have no gradient
    in exact arithmetic, because softmax ignores a constant added to all keys.
    """
    rounding = 1e-7 * np.sqrt(
        sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(expected))
    )

    def close(path, a, b):
        error = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        norm = np.linalg.norm(np.asarray(b, np.float64))
        assert error <= tolerance * norm + rounding, (jax.tree_util.keystr(path), error, norm)

    jax.tree_util.tree_map_with_path(close, found, expected)


@pytest.mark.parametrize(
    ("shape", "freeze"),
    [
        ({"Q": 1}, ("tower",)),
        ({"Q": 3, "B": 2, "absent": True}, ()),
        ({"Q": 2, "within": True}, ("tower",)),
    ],
)
def test_shared_prefix_equals_two_rows(shape, freeze):
    batch = jax.tree.map(jnp.asarray, random_batch(**shape))
    frozen = {"freeze_tower": bool(freeze)}
    fast = loss_and_gradient(
        lambda model, batch: model.token_logps(batch, remat="full", chunk=4, **frozen),
        batch,
        freeze,
    )
    slow = loss_and_gradient(
        lambda model, batch: classic.token_logps(model, batch, **frozen), batch, freeze
    )
    np.testing.assert_allclose(fast[0], slow[0], atol=1e-5)
    assert_same(fast[1], slow[1])


@pytest.mark.parametrize("within", [False, True])
def test_switches_of_the_original_layout_change_nothing(within):
    batch = jax.tree.map(jnp.asarray, random_batch(Q=2, within=within))
    model = families.bind(SMALL, params())
    ways = [{}, {"encode_once": True}, {"answers_only": True}]
    logps = [jax.jit(lambda b, w=way: classic.token_logps(model, b, **w))(batch) for way in ways]
    for found in logps[1:]:
        np.testing.assert_allclose(found, logps[0], atol=1e-5)


# Every path of the step beyond sigmoid DPO: reference-free, a mean over the batch, phrases, and a
# live reference.
MIXED = Objective(0.3, 0.5, 0.8, loss="0.5*ipo+kto_pair+rrpo+0.3*orpo", token_kl=0.2)
LEAN = Objective(2.0, 0.0, loss="leanpo", label_smoothing=0.1)


@functools.cache
def other_weights():
    trainable, _ = split_params(params(), ("tower",))
    noise = np.random.default_rng(1)
    noisy = lambda x: x * noise.normal(1, 0.2, x.shape).astype(np.float32)  # noqa: E731
    return jax.device_put(jax.tree.map(noisy, jax.device_get(trainable)))


def pairs_batch(objective):
    batch = random_batch(B=4, Q=2, absent=True)
    phrases = None
    if objective.uses_phrases:
        phrases = phrase_mask(batch.target_ids, batch.target_mask)
    batch = dataclasses.replace(batch, reference_logps=None, phrase_mask=phrases)
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def classic_gradient(objective):
    """Loss and gradient from whole distributions of the two-row layout."""
    batch = pairs_batch(objective)
    trainable, frozen = split_params(params(), ("tower",))
    mask, chosen = batch.target_mask, batch.target_mask[:, :, 0]
    optional = {}
    if objective.uses_live_reference:
        reference = families.bind(SMALL, other_weights() | frozen)
        anchor = jax.jit(lambda b: classic.log_probabilities(reference, b))(batch)
        taken = jnp.take_along_axis(anchor, batch.target_ids[..., None], -1)[..., 0]
        sums = [jnp.where(m, taken, 0.0).sum(-1) for m in (mask, batch.phrase_mask)]
        optional = {"phrase_mask": batch.phrase_mask}

    def loss(trainable):
        logps = classic.log_probabilities(families.bind(SMALL, trainable | frozen), batch)
        taken = jnp.take_along_axis(logps, batch.target_ids[..., None], -1)[..., 0]
        reference = None
        if optional:
            reference = jnp.concatenate(sums, -1)
            kl = (jnp.exp(anchor) * (anchor - logps)).sum(-1)[:, :, 0]
            optional["token_kl"] = jnp.where(chosen, kl, 0.0)
        return tpo_loss(
            jnp.where(mask, taken, 0.0), mask, reference, objective, denominators(mask), **optional
        )[0]

    return jax.jit(jax.value_and_grad(loss))(trainable)


PARTS = Compute("float32", micro_batches=2, head_chunk=4)


@pytest.mark.parametrize(("objective", "compute"), [(MIXED, PARTS), (LEAN, EXACT)])
def test_any_objective_equals_two_rows(objective, compute):
    reference = other_weights() if objective.uses_live_reference else None
    batch = pairs_batch(objective)
    gradient, metrics = gradient_of_a_step(objective, compute, batch, reference=reference)
    loss, expected = jax.device_get(classic_gradient(objective))
    np.testing.assert_allclose(metrics["losses/total"], loss, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert_same(gradient, expected, 2e-5)  # the difference of weights rounds once more


def test_padding_changes_nothing():
    batch = random_batch()
    padded = dataclasses.replace(
        batch,
        **{
            name: np.pad(getattr(batch, name), ((0, 0), (0, 9)), constant_values=fill)
            for name, fill in (("prefix_ids", 7), ("prefix_mask", False), ("visual_index", -1))
        },
        **{
            name: np.pad(getattr(batch, name), ((0, 0),) * 3 + ((0, 5),), constant_values=fill)
            for name, fill in (
                ("input_ids", 9),
                ("input_mask", False),
                ("target_ids", 3),
                ("target_mask", False),
            )
        },
    )
    model = families.bind(SMALL, params())
    a, b = (jax.jit(lambda x: model.token_logps(x))(x) for x in (batch, padded))
    np.testing.assert_allclose(a, b[..., : a.shape[-1]], atol=1e-5)
    assert (b[..., a.shape[-1] :] == 0).all()


def test_continuations_do_not_see_each_other():
    batch = random_batch(B=1, Q=2)
    model = families.bind(SMALL, params())
    score = jax.jit(lambda x: model.token_logps(x))
    changed = dataclasses.replace(batch, input_ids=batch.input_ids.copy())
    changed.input_ids[0, 0, 1] = (changed.input_ids[0, 0, 1] + 1) % 90
    a, b = np.asarray(score(batch)), np.asarray(score(changed))
    others = [(0, 0, 0), (0, 1, 0), (0, 1, 1)]
    assert all((a[i] == b[i]).all() for i in others)
    assert (a[0, 0, 1] != b[0, 0, 1]).any()


def test_labels_of_the_prefix_in_zig_zag_order():
    batch = random_batch(B=2, within=True)
    assert (batch.target_at >= 0).any()
    score = jax.jit(lambda p, x: families.bind(SMALL, p).token_logps(x))
    plain = score(params(), batch)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": 2}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        weights = jax.device_put(params(), parameter_shardings(mesh, params()))
        split = score(weights, to_global(batch, mesh))
    np.testing.assert_allclose(jax.device_get(split), plain, atol=1e-5)


def prepared(objective, compute, sizes, optimizer, batch):
    """A mesh, the jitted step, and a state of `params()` and a batch over that mesh; the tower is
    frozen.
    """
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: math.prod(sizes)])
    state = new_state(jax.tree.map(np.array, params()), optimizer, ("tower",))
    state = jax.device_put(state, parameter_shardings(mesh, state))
    step = jax.jit(make_step(SMALL, objective, compute, optimizer), donate_argnums=0)
    return mesh, step, state, to_global(batch, mesh)


def after_one_step(objective, compute, sizes, optimizer, batch, reference=None):
    """State and metrics after a step over a mesh, NumPy."""
    mesh, step, *given = prepared(objective, compute, sizes, optimizer, batch)
    with jax.set_mesh(mesh):
        return jax.device_get(step(*given, reference))


SGD = optax.sgd(1.0)  # its update is the gradient


def gradient_of_a_step(objective, compute, batch, sizes=(1, 1, 1, 1), reference=None):
    """The gradient, from the update of plain SGD, and the metrics of a step."""
    state, metrics = after_one_step(objective, compute, sizes, SGD, batch, reference)
    before, _ = split_params(jax.device_get(params()), ("tower",))
    return jax.tree.map(np.subtract, before, state.params), metrics


@functools.cache
def updated(compute, sizes=(1, 1, 1, 1)):
    """Parameters and metrics after a step of plain SGD, whose update shows the gradient."""
    batch = random_batch(B=8, absent=True)
    state, metrics = after_one_step(OBJECTIVE, compute, sizes, optax.sgd(0.1), batch)
    return state.params, metrics


@pytest.mark.parametrize(
    "compute",
    [
        Compute("float32", remat="dots", micro_batches=4),
        Compute("float32", remat="qkv:save,attention:save,residual:recompute,mlp:offload"),
        Compute("float32", remat="full", head_chunk=2, scan=False),
        Compute("float32", remat="full", micro_batches=2, head_chunk=4),
    ],
)
def test_remat_chunks_and_accumulation_change_nothing(compute):
    assert_same(updated(compute), updated(EXACT))


@pytest.mark.parametrize(
    "sizes",
    [(1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 1, 4), (1, 2, 2, 2)],  # every two axes meet
)
def test_any_mesh_gives_the_same_step(sizes):
    assert_same(updated(EXACT, sizes), updated(EXACT))


def test_frozen_tower_does_not_move_and_others_do():
    after, _ = updated(EXACT)
    assert "tower" not in after
    before, _ = split_params(jax.device_get(params()), ("tower",))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, before)
    assert all(jax.tree.leaves(moved)), moved


def test_the_step_compiles_once_donates_its_state_and_has_no_logits_of_the_prefix():
    optimizer, P, W = optax.adamw(1e-3), 48, SMALL.decoder.vocab_size
    state = jax.jit(lambda p: new_state(p, optimizer, ("tower",)))(params())
    step = jax.jit(make_step(SMALL, OBJECTIVE, Compute("bfloat16"), optimizer), donate_argnums=0)
    batches = [jax.tree.map(jnp.asarray, random_batch(P=P, seed=seed)) for seed in range(3)]
    # No buffer has a dimension of all positions next to the vocabulary.
    text = step.lower(state, batches[0]).compile().as_text()
    assert f",{W}]" in text, "the head of the responses is there"
    for bad in (f"[4,{P},{W}]", f"[{4 * P},{W}]", f"[4,{P + 8},{W}]"):
        assert bad not in text
    for batch in batches:
        old = state
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
        assert all(x.is_deleted() for x in jax.tree.leaves(old.params))
    assert step._cache_size() == 1
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


def test_scorer_sums_what_the_step_sums():
    batch = random_batch()
    scores = jax.jit(make_scorer(SMALL, EXACT))(params(), batch)
    logps = jax.jit(lambda p, batch: families.bind(SMALL, p).token_logps(batch))
    expected = np.sum(logps(params(), batch), -1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_optimizer_decays_matrices_only():
    optimizer = make_optimizer(Optimizer(weight_decay=0.1), lambda _: 1.0)
    trainable, _ = split_params(params(), ("tower",))
    zeros = jax.tree.map(np.zeros_like, jax.device_get(trainable))
    update = jax.jit(lambda zeros, params: optimizer.update(zeros, optimizer.init(params), params))
    updates, _ = update(zeros, trainable)
    decays = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, update in jax.tree_util.tree_flatten_with_path(jax.device_get(updates))[0]
        if update.any()
    }
    assert decays and all(name.endswith(("kernel", "embedding")) for name in decays)
