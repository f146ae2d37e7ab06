"""The decoder with what Qwen3-VL and Qwen2.5-VL need, against `transformers` and against itself:
positions of three axes in both layouts, q/k norms, DeepStack features, shared prefixes, caches and
meshes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tpo_jax.checkpoints.huggingface import flatten
from tpo_jax.families.weights import (
    DECODER,
    DECODER_LAYER,
    DECODER_LAYERS,
    HEAD,
    from_torch,
    leaves,
    to_torch,
)
from tpo_jax.models.blocks import Projections
from tpo_jax.models.classic import appended
from tpo_jax.models.config import DecoderConfig
from tpo_jax.models.decoder import Decoder, PrefixStream, causal
from tpo_jax.models.lora import Lora, init_adapters, join, merge, scaled
from tpo_jax.models.quantized import quantize_params
from tpo_jax.models.rotary import continuation_positions, rotary, rotary_axes
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import parameter_shardings

SIZES = {"vocab_size": 96, "layers": 4, "mlp_width": 56, "rope_theta": 1e4}
QWEN3 = DecoderConfig(
    **SIZES,
    width=40,
    heads=4,
    kv_heads=2,
    head_dim=16,  # not 40 / 4
    qkv_bias=False,
    qk_norm=True,
    rope_sections=(4, 2, 2),
    rope_interleaved=True,
)
QWEN2_5 = DecoderConfig(
    **SIZES, width=64, heads=4, kv_heads=2, head_dim=16, rope_sections=(2, 3, 3)
)
DECODERS = {"Qwen3-VL": QWEN3, "Qwen2.5-VL": QWEN2_5}
LEVELS, B, P, M, R = 3, 2, 24, 2, 6
LOGITS, GRADIENT = 1e-4, 1e-5
both = pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)


@functools.cache
def definition(config, projections=Projections()):  # noqa: B008, a constant
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), projections)))[0]


def bind(config, params, projections=Projections()):  # noqa: B008, a constant
    return nnx.merge(definition(config, projections), params)


@functools.cache
def init(config):
    """Random parameters, norms and biases among them."""
    drawn = nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(0), Projections()))[1])
    noise = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * noise.standard_normal(x.shape, np.float32), drawn
    )


def make_prefix(config, deepstack=None):
    """A prefix per row, the second one padded: text, visual tokens of several frames, text."""
    draws, mask = np.random.default_rng(2), np.arange(P) < np.array([[P], [P - 5]])
    visual = (np.arange(P) >= 3) & (np.arange(P) < 15)
    positions = np.repeat(np.arange(P)[:, None], 3, axis=1)
    frame, place = np.divmod(np.arange(12), 6)
    positions[visual] = 3 + np.stack([5 * frame, place // 3, place % 3], axis=1)
    positions[15:] = 11 + np.arange(P - 15)[:, None]
    levels = draws.standard_normal((B, LEVELS, P, config.width), np.float32)
    return PrefixStream(
        jnp.asarray(draws.standard_normal((B, P, config.width), np.float32)),
        jnp.asarray(mask),
        positions=jnp.broadcast_to(positions.astype(np.int32), (B, P, 3)),
        end=jnp.asarray([11 + P - 15, 11 + P - 20], jnp.int32),
        deepstack=jnp.asarray(levels * visual[:, None]) if deepstack else None,
    )


def make_continuations(config):
    draws = np.random.default_rng(3)
    mask = np.arange(R) < np.array([[R, 4], [3, R]])[..., None]
    tokens = draws.standard_normal((B, M, R, config.width), np.float32)
    return jnp.asarray(tokens), jnp.asarray(mask)


def original(config):
    """The text model of `transformers` with our weights, and its head."""
    torch = pytest.importorskip("torch", reason="the parity tests compare with PyTorch")
    transformers = pytest.importorskip("transformers")
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": list(config.rope_sections),
        },
        "attn_implementation": "eager",
    }
    if config.qk_norm:
        from transformers.models.qwen3_vl import modeling_qwen3_vl as modeling

        settings = transformers.Qwen3VLTextConfig(head_dim=config.head_dim, **values)
        model = modeling.Qwen3VLTextModel(settings)
    else:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

        model = modeling.Qwen2_5_VLTextModel(modeling.Qwen2_5_VLTextConfig(**values))
    params = {f"decoder/{k}": x for k, x in flatten(init(config)).items()}
    tensors = {
        name: torch.tensor(np.ascontiguousarray(tensor))
        for path, leaf in rules(config).items()
        for name, tensor in zip(leaf.names, to_torch(leaf, params[path]), strict=True)
    }
    head = torch.nn.Parameter(tensors.pop(HEAD))
    model.load_state_dict({k.removeprefix("model."): x for k, x in tensors.items()})
    return torch, model, head


def rules(config):
    shapes = {f"decoder/{k}": x.shape for k, x in flatten(init(config)).items()}
    return leaves(shapes, DECODER, {"decoder/layers/": (DECODER_LAYERS, DECODER_LAYER)})


@both
def test_logits_and_gradients_are_those_of_transformers(config, record_property):
    torch, model, head = original(config)
    prefix = make_prefix(config, deepstack=config.qk_norm)
    weight = np.random.default_rng(4).standard_normal((B, P, config.vocab_size), np.float32)
    weight *= np.asarray(prefix.mask)[..., None]

    @jax.jit
    def ours(params, x, deepstack):
        def loss(params, x, deepstack):
            decoder = bind(config, params)
            stream = prefix._replace(x=x, deepstack=deepstack)
            logits = decoder.head(decoder.sequence(stream))
            return (logits * weight).mean(), logits

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, deepstack)

    (_, logits), gradients = ours(init(config), prefix.x, prefix.deepstack)

    x = torch.tensor(np.asarray(prefix.x), requires_grad=True)
    mask = torch.tensor(np.asarray(prefix.mask))
    visual, extra = (np.arange(P) >= 3) & (np.arange(P) < 15), {}
    if config.qk_norm:
        levels = np.moveaxis(np.asarray(prefix.deepstack), 1, 0)[:, :, visual]
        levels = torch.tensor(levels.reshape(LEVELS, -1, config.width), requires_grad=True)
        places = torch.tensor(np.broadcast_to(visual, (B, P)).copy())
        extra = {"visual_pos_masks": places, "deepstack_visual_embeds": list(levels)}
    positions = torch.tensor(np.moveaxis(np.asarray(prefix.positions), -1, 0).astype(np.int64))
    hidden = model(
        inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False, **extra
    ).last_hidden_state
    theirs = hidden @ head.T
    (theirs * torch.tensor(weight)).mean().backward()

    real = np.asarray(prefix.mask)
    difference = float(np.abs(np.asarray(logits) - theirs.detach().numpy())[real].max())
    what = f"{'Qwen3-VL' if config.qk_norm else 'Qwen2.5-VL'} decoder, positions of three axes"
    what += " and DeepStack" * config.qk_norm
    shape = "x".join(map(str, logits.shape))
    record_property("parity", (f"{what}, logits", shape, difference, LOGITS))
    assert difference <= LOGITS

    named = {f"model.{k}": p.grad for k, p in model.named_parameters()} | {HEAD: head.grad}
    found = {f"decoder/{k}": v for k, v in flatten(gradients[0]).items()}
    pairs = {"x": (gradients[1], x.grad.numpy())}
    if config.qk_norm:
        ours_levels = np.moveaxis(np.asarray(gradients[2]), 1, 0)[:, :, visual]
        pairs["deepstack"] = ours_levels.reshape(levels.shape), levels.grad.numpy()
    for path, leaf in rules(config).items():
        if "embed" in path:
            continue  # no token was looked up
        parts = [from_torch(leaf, named[name].numpy()) for name in leaf.names]
        pairs[path] = found[path], np.stack(parts) if leaf.stacked else parts[0]
    apart = {
        name: float(np.linalg.norm(one - other) / np.linalg.norm(other))
        for name, (one, other) in pairs.items()
    }
    worst = max(apart.values())
    what = f"{what}, gradients, over their norm"
    record_property("parity", (what, f"{len(pairs)} tensors", worst, GRADIENT))
    assert worst <= GRADIENT, apart


@both
def test_equal_positions_are_ordinary_rotary_to_the_bit(config):
    positions = jnp.arange(0, 100_000, 977)
    axes = rotary_axes(config.rope_sections, config.rope_interleaved)
    assert np.bincount(axes).tolist() == list(config.rope_sections)
    plain = rotary(positions, 16, 5e6, jnp.float32)
    three = rotary(jnp.stack([positions] * 3, axis=-1), 16, 5e6, jnp.float32, axes)
    for one, other in zip(plain, three, strict=True):
        np.testing.assert_array_equal(one, other)


def answers(config, params, prefix, y, mask, weight, **how):
    """Return the weighted sum of the hidden states of continuations, and the hidden states."""
    hidden = bind(config, params).row(prefix, y, mask, **how)
    return (hidden * weight).sum(), hidden


def weighted(config, mask):
    weight = np.random.default_rng(5).standard_normal((B, M, R, config.width), np.float32)
    return weight * np.asarray(mask)[..., None]


def with_gradients(function):
    return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True, allow_int=True))


@functools.cache
def of_shared_prefix(config):
    """The weighted sum, the hidden states and the gradients, on one device."""
    prefix, (y, mask) = make_prefix(config, deepstack=config.qk_norm), make_continuations(config)
    weight = weighted(config, mask)

    def shared(params, prefix):
        return answers(config, params, prefix, y, mask, weight, remat="full")

    return jax.device_get(with_gradients(shared)(init(config), prefix))


@both
def test_shared_prefix_equals_one_row_per_continuation(config):
    prefix, (y, mask) = make_prefix(config, deepstack=config.qk_norm), make_continuations(config)
    weight = weighted(config, mask)

    def one_row_each(params, prefix):
        decoder = bind(config, params)
        each = jax.tree.map(lambda x: jnp.repeat(x, M, axis=0), prefix)
        stream = appended(each, y.reshape(B * M, R, -1), mask.reshape(B * M, R))
        hidden = decoder.sequence(stream)[:, P:].reshape(y.shape)
        return (hidden * weight).sum(), hidden

    real = np.asarray(mask)
    (_, ours), gradients = of_shared_prefix(config)
    (_, theirs), expected = with_gradients(one_row_each)(init(config), prefix)
    np.testing.assert_allclose(ours[real], theirs[real], atol=2e-5)
    for one, other in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        if one.dtype == jnp.float32:
            assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)


@both
def test_cached_decoding_equals_the_full_pass(config):
    prefix, (y, mask) = make_prefix(config, deepstack=config.qk_norm), make_continuations(config)
    expected = jax.jit(lambda p: bind(config, p).row(prefix, y, mask))(init(config))
    first = 2  # tokens read at once; the others one by one, as answers are decoded

    @jax.jit
    def decoded(params):
        decoder = bind(config, params)
        kept = decoder.prefill(prefix)
        positions = continuation_positions(prefix.mask, mask, prefix.end)
        empty = jnp.zeros((config.layers, B, M, R, config.kv_heads, config.head_dim))
        visible, cache, parts = causal(mask), (empty, empty), []
        for start, end in [(0, first), *((n, n + 1) for n in range(first, R))]:
            hidden, cache = decoder.extend(
                y[:, :, start:end],
                positions[:, :, start:end],
                kept,
                prefix.mask,
                cache,
                start,
                visible[:, :, start:end],
            )
            parts.append(hidden)
        return jnp.concatenate(parts, axis=2)

    real = np.asarray(mask)
    np.testing.assert_allclose(decoded(init(config))[real], expected[real], atol=2e-5)


def test_zig_zag_order_changes_nothing():
    config = QWEN3
    prefix, (y, mask) = make_prefix(config, deepstack=True), make_continuations(config)
    weight = weighted(config, mask)

    def loss(params, prefix):
        return answers(config, params, prefix, y, mask, weight, remat="full")

    (_, expected), expected_gradients = of_shared_prefix(config)
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    tree = {"decoder": init(config)}
    params = jax.device_put(tree, parameter_shardings(mesh, tree))["decoder"]
    with jax.set_mesh(mesh):
        (_, hidden), gradients = with_gradients(loss)(params, jax.device_get(prefix))
    real = np.asarray(mask)
    np.testing.assert_allclose(np.asarray(hidden)[real], expected[real], atol=2e-5)
    found, wanted = map(jax.tree.leaves, (gradients, expected_gradients))
    for one, other in zip(found, wanted, strict=True):
        if one.dtype == jnp.float32:
            assert np.linalg.norm(np.asarray(one) - other) <= 1e-5 * np.linalg.norm(other)


def test_adapters_beside_quantized_kernels_equal_the_merged_decoder():
    prefix, tree = make_prefix(QWEN3, deepstack=True), {"decoder": init(QWEN3)}
    lora = Lora(rank=2, alpha=6.0)
    adapters = jax.tree.map(lambda x: x + 0.1, init_adapters(lora, tree, seed=0))
    quantized = quantize_params(tree, "int8")

    def whole(layer):
        if "kernel_scale" not in layer:
            return layer
        kernel = layer["kernel"].astype(jnp.float32) * layer["kernel_scale"]
        return {"kernel": kernel, **{k: layer[k] for k in layer if not k.startswith("kernel")}}

    rounded = {name: whole(layer) for name, layer in quantized["decoder"]["layers"].items()}
    plain = {"decoder": {**quantized["decoder"], "layers": rounded}}
    merged = merge(join(plain, adapters), lora)["decoder"]
    names = tuple((name, lora.rank) for name in adapters["decoder"]["layers"])
    beside = scaled(join(quantized, adapters), lora)["decoder"]
    found = [
        jax.jit(lambda p, given: bind(QWEN3, p, given).sequence(prefix), static_argnums=1)(*inputs)
        for inputs in ((merged, Projections()), (beside, Projections(names, quantized=True)))
    ]
    real = np.asarray(prefix.mask)
    np.testing.assert_allclose(found[1][real], found[0][real], atol=2e-4)


@pytest.mark.parametrize("sections", [(4, 2), (4, 4, 4)])
def test_sections_that_do_not_fill_a_head_are_refused(sections):
    with pytest.raises(ValueError, match="rope_sections.*half of head_dim=16"):
        DecoderConfig(**SIZES, width=64, heads=4, kv_heads=2, head_dim=16, rope_sections=sections)
