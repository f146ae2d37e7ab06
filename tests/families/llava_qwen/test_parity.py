"""Same numbers as the PyTorch originals, float32 on CPU, highest matmul precision.

Every measured difference is attached to the test report; `tests/parity_table.py` makes a table of
them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import originals
from tests.batches import one_row
from tpo_jax import families
from tpo_jax.checkpoints.huggingface import flatten, weights
from tpo_jax.checkpoints.models import load_model
from tpo_jax.families.llava_qwen.model import pool
from tpo_jax.families.llava_qwen.processing import picture
from tpo_jax.families.weights import to_torch
from tpo_jax.models.batch import Batch
from tpo_jax.models.blocks import RMSNorm
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.models.pictures import joined
from tpo_jax.models.rotary import rotary
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss

torch = originals.torch
FAMILIES = {"LongVA": originals.LONGVA, "LLaVA-Video": originals.LLAVA_VIDEO}
MODULE, LOGITS, LOGPS, LOSS, GRADIENT = 1e-5, 1e-4, 1e-3, 1e-5, 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    config = FAMILIES[request.param]
    original = originals.Original(config)
    directory = tmp_path_factory.mktemp(request.param)
    originals.write_checkpoint(directory, original)
    params = load_model(directory).params
    return request.param, config, original, params


def random_frames(config, num_frames, seed=0):
    side = config.tower.image_size
    shape = (num_frames, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_ids(config, n, seed):
    return np.random.default_rng(seed).integers(0, config.decoder.vocab_size, n).tolist()


def test_tower_and_projector(family, agree):
    name, config, original, params = family
    frames = random_frames(config, 2)

    @jax.jit
    def ours(params, frames):
        model = families.bind(config, params)
        x = model.tower(frames)
        return x, model.projector(x)

    with torch.no_grad():
        features = original.model.vision_tower(torch.tensor(frames))
        projected = original.model.mm_projector(features)
    got = ours(params, frames)
    agree(f"{config.tower.kind} tower", got[0], features, MODULE)
    agree(f"{name} tower and projector", got[1], projected, MODULE)


@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
@pytest.mark.parametrize("grid", [24, 27])
def test_pooling(mode, grid, agree):
    x = np.random.default_rng(0).standard_normal((2, grid, grid, 5), np.float32)
    theirs = originals.pool(torch.tensor(x).reshape(2, grid * grid, 5), mode)
    agree(f"pooling, {mode}", pool(jnp.asarray(x), mode), theirs, MODULE)


@pytest.mark.parametrize("newline", ["grid", "frame", "one_token", "no_token"])
def test_visual_tokens(newline, tmp_path, agree):
    pooling = "bilinear" if newline == "frame" else "average"
    config = dataclasses.replace(originals.LLAVA_VIDEO, newline=newline, pooling=pooling)
    original = originals.Original(config)
    originals.write_checkpoint(tmp_path, original)
    model, frames = load_model(tmp_path), random_frames(config, 3)
    # A model without the newline vector keeps in mind that its images need it.
    assert dataclasses.replace(model.config, stills=None) == config
    ours = jax.jit(lambda p, f: families.bind(config, p).encode_frames(f))(
        model.params, frames[None]
    )
    assert ours.shape[1] == config.visual_tokens(3)
    with torch.no_grad():
        theirs = original.encode(torch.tensor(frames))
    agree(f"frames to tokens, {newline}, {pooling}", ours[0], theirs, MODULE)


def test_rms_norm(agree):
    x = np.random.default_rng(0).standard_normal((7, 60), np.float32) * 5
    theirs = originals.transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm(60, eps=1e-6)
    agree("RMSNorm", RMSNorm(60, 1e-6)(x), theirs(torch.tensor(x)), MODULE)


def rotary_of_transformers(head_dim, theta, positions):
    config = originals.transformers.Qwen2Config(
        hidden_size=head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    module = originals.transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding(config)
    with torch.no_grad():
        return module(torch.zeros(1), torch.tensor(positions)[None])


@pytest.mark.parametrize(
    ("theta", "last"), [(1e9, 432_000), (1e6, 32_768)], ids=["LongVA", "LLaVA-Video"]
)
def test_rotary_at_large_positions(theta, last, agree, record_property):
    positions = np.arange(last - 500, last + 1)
    ours = [np.asarray(x)[:, 0] for x in rotary(jnp.asarray(positions), 128, theta, jnp.float32)]
    theirs = rotary_of_transformers(128, theta, positions)
    what = f"rotary, theta {theta:.0e}, up to position {last:,}"
    agree(f"{what}, cosine", ours[0], theirs[0][0], MODULE)
    agree(f"{what}, sine", ours[1], theirs[1][0], MODULE)
    exact = np.cos(positions[:, None] * theta ** (-np.arange(0, 128, 2) / 128))
    error = float(np.abs(ours[0][:, :64] - exact).max())
    record_property("note", f"{what}: in both, float32 differs from float64 by {error:.1e}")


def test_logits(family, agree):
    name, config, original, params = family
    frames = random_frames(config, 2)
    before, after = random_ids(config, 5, 1), random_ids(config, 23, 2)
    with torch.no_grad():
        their_hidden = original.hidden(torch.tensor(frames), before, after)
        theirs = original.lm_head(their_hidden)
    n = config.visual_tokens(2)
    ids = np.array([before + [0] * n + after])
    index = np.concatenate([np.full(5, -1), np.arange(n), np.full(23, -1)])[None]

    @jax.jit
    def ours(params):
        model = families.bind(config, params)
        x = model.embed_prefix(ids, model.encode_frames(frames[None]), index)
        hidden = model.decoder.sequence(PrefixStream(x, jnp.ones(ids.shape, bool)))
        return hidden, model.decoder.head(hidden)

    hidden, logits = ours(params)
    agree(f"{name} decoder, hidden states", hidden[0], their_hidden, MODULE)
    agree(f"{name} whole model, logits", logits[0], theirs, LOGITS)


def random_image(width, height, seed=0):
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def pictures_of(config, *images):
    return joined([picture(image, config) for image in images], config)


# Several tiles; one; a wide one that is cut on both sides; one that is shrunk to nine tiles.
SIZES = {
    "LongVA": [(40, 30), (24, 24), (190, 11)],
    "LLaVA-Video": [(150, 60), (90, 90), (660, 220)],
}


@pytest.mark.parametrize("number", range(3))
def test_image_tokens(family, number, agree):
    name, config, original, params = family
    size = SIZES[name][number]
    picture = random_image(*size)
    pictures = pictures_of(config, picture)
    (n,) = pictures.tokens
    batch = one_row(config, pictures, None, n + 5)
    ours = jax.jit(lambda p, b: families.bind(config, p).encode(b))(params, batch)
    with torch.no_grad():
        theirs = original.encode_image(picture, config.images.pinpoints)
    agree(f"{name} image of {size[0]}x{size[1]} to tokens", ours[0, :n], theirs, MODULE)


@pytest.mark.parametrize("images", [True, False], ids=["images", "text alone"])
def test_logits_of_images(family, images, agree):
    """Two images of LongVA; one of LLaVA-Video, whose tower has 27x27 patches."""
    name, config, original, params = family
    sizes = {"LongVA": SIZES["LongVA"][:2], "LLaVA-Video": [(90, 90)]}[name] if images else []
    number = len(sizes)
    images = [random_image(*size, seed=i) for i, size in enumerate(sizes)]
    texts = [random_ids(config, 4 + i, i) for i in range(number + 1)]
    pictures = pictures_of(config, *images)
    with torch.no_grad():
        parts = [original.encode_image(image, config.images.pinpoints) for image in images]
        order = [x for pair in zip(texts, parts, strict=False) for x in pair] + texts[-1:]
        theirs = original.lm_head(original.hidden_of(order))
    ids, index, seen = [*texts[0]], [-1] * len(texts[0]), 0
    for n, text in zip(pictures.tokens, texts[1:], strict=True):
        ids += [0] * n + text
        index += [*range(seen, seen + n), *[-1] * len(text)]
        seen += n
    batch = one_row(config, pictures, None, len(ids))

    @jax.jit
    def ours(params, batch):
        model = families.bind(config, params)
        x = model.embed_prefix(np.array([ids]), model.encode(batch), np.array([index]))
        prefix = PrefixStream(x, jnp.ones((1, len(ids)), bool))
        return model.decoder.head(model.decoder.sequence(prefix))

    what = {0: "text alone", 1: "1 image"}.get(number, f"{number} images")
    agree(f"{name} whole model, {what}, logits", ours(params, batch)[0], theirs, LOGITS)


BETA, ALPHA = 0.1, 0.5


def pair(config):
    """A video, a question, answers of 100 and 37 tokens: for the original, and as a batch."""
    frames = random_frames(config, 2, seed=3)
    before, after = random_ids(config, 4, 4), random_ids(config, 9, 5)
    answers = [random_ids(config, 100, 6), random_ids(config, 37, 7)]
    n = config.visual_tokens(2)
    # The prompt's last token opens both continuations; three padded slots behind the prefix.
    P, R = 4 + n + 8 + 3, 100
    ids, index = np.zeros((1, P), np.int32), np.full((1, P), -1, np.int32)
    ids[0, :4], ids[0, 4 + n : -3], index[0, 4 : 4 + n] = before, after[:-1], np.arange(n)
    inputs, targets = np.zeros((2, R), np.int32), np.zeros((2, R), np.int32)
    for i, answer in enumerate(answers):
        inputs[i, : len(answer)] = [after[-1], *answer[:-1]]
        targets[i, : len(answer)] = answer
    mask = np.arange(R) < np.array([[100], [37]])
    batch = Batch(
        frames=frames[None],
        prefix_ids=ids,
        prefix_mask=np.arange(P)[None] < P - 3,
        visual_index=index,
        input_ids=inputs[None, None],
        input_mask=mask[None, None],
        target_ids=targets[None, None],
        target_mask=mask[None, None],
    )
    return (frames, before, after, answers), batch


def their_logps(original, frames, before, after, answers):
    """Per answer, the log-probability of each of its tokens; every answer is a row of its own."""
    rows = []
    for answer in answers:
        logits = original(torch.tensor(frames), before, after + answer)[-len(answer) - 1 : -1]
        logps = torch.log_softmax(logits, dim=-1)
        rows.append(logps.gather(1, torch.tensor(answer)[:, None])[:, 0])
    return rows


def test_labels_of_the_original_trainer(family, agree):
    """It labels tokens of the template before and behind the video, too."""
    name, config, original, params = family
    (frames, before, after, answers), batch = pair(config)
    n, P = config.visual_tokens(2), batch.prefix_mask.sum()
    inside = [2, 4 + n + 1, P - 1]  # places in the prefix of labelled tokens, not the first one
    theirs = []
    for answer in answers:
        ids = np.array([*before, *[0] * n, *after, *answer])
        places = np.array([*inside, *range(P + 1, len(ids))])
        with torch.no_grad():
            logits = original(torch.tensor(frames), before, after + answer)[places - 1]
        logps = torch.log_softmax(logits, dim=-1)
        theirs.append(logps.gather(1, torch.tensor(ids[places])[:, None])[:, 0].sum())
    wider = {
        key: np.pad(getattr(batch, key), ((0, 0),) * 3 + ((0, 3),))
        for key in ("input_ids", "input_mask", "target_ids", "target_mask")
    }
    at = np.full_like(wider["input_ids"], -1)
    for i, answer in enumerate(answers):
        slots = slice(len(answer), len(answer) + 3)
        at[0, 0, i, slots] = [place - 1 for place in inside]
        wider["target_ids"][0, 0, i, slots] = batch.prefix_ids[0, inside]
        wider["target_mask"][0, 0, i, slots] = True
    batch = dataclasses.replace(batch, **wider, target_at=at)
    ours = jax.jit(lambda p: families.bind(config, p).token_logps(batch).sum(-1)[0, 0])(params)
    agree(f"{name} summed log-probabilities, trainer's labels", ours, torch.stack(theirs), LOGPS)


def test_loss_and_gradients(family, agree, record_property):
    name, config, original, params = family
    arguments, batch = pair(config)
    chosen, rejected = their_logps(original, *arguments)
    summed = torch.stack([chosen.sum(), rejected.sum()])
    # Near the policy, where the sigmoid has a slope.
    reference = summed.detach().round() + torch.tensor([3.0, -4.0])
    log_ratio = summed - reference
    dpo = -torch.nn.functional.logsigmoid(BETA * (log_ratio[0] - log_ratio[1]))
    their_loss = dpo - ALPHA * chosen.mean()
    original.zero_grad()
    their_loss.backward()

    @jax.jit
    def ours(params):
        def loss(params):
            logps = families.bind(config, params).token_logps(batch)
            mask = jnp.asarray(batch.target_mask)
            objective = Objective(beta=BETA, alpha=ALPHA)
            return tpo_loss(
                logps,
                mask,
                jnp.asarray(reference.numpy())[None, None],
                objective,
                denominators(mask),
            )[0], logps

        return jax.value_and_grad(loss, has_aux=True)(params)

    (our_loss, logps), gradients = ours(params)
    agree(f"{name} summed log-probabilities", logps.sum(-1)[0, 0], summed, LOGPS)
    agree(f"{name} DPO + SFT loss", our_loss, their_loss, LOSS)

    named = dict(original.named_parameters())
    theirs = {
        name: named.get(name, named.get(name.replace("vision_model.", ""))).grad
        for leaf in weights(config).leaves.values()
        for name in leaf.names
    }
    leaves, ours = flatten(gradients), {}
    for path, leaf in weights(config).leaves.items():
        tensors = to_torch(leaf, np.asarray(leaves[path]))
        ours |= dict(zip(leaf.names, tensors, strict=True))
    worst = (0.0, "")
    for tensor, grad in theirs.items():
        norm = grad.norm().item()
        if "vision_tower" in tensor and tensor.endswith("k_proj.bias"):
            # Softmax does not see a constant added to all keys: this gradient is zero but for
            # rounding, so it is measured against that of the same projection's weight.
            norm = theirs[tensor.replace("bias", "weight")].norm().item()
        worst = max(worst, (np.linalg.norm(ours[tensor] - grad.numpy()) / norm, tensor))
    shape = f"{len(theirs)} tensors"
    record_property(
        "parity", (f"{name} gradients, over their norm", shape, float(worst[0]), GRADIENT)
    )
    assert worst[0] <= GRADIENT, worst
