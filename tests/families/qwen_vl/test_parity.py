"""Whole models against `transformers`, float32, highest matmul precision."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.families.qwen_vl import originals
from tests.families.qwen_vl.originals import make_tokenizer, their_inputs
from tests.families.qwen_vl.tiny import CONFIGS
from tpo_jax import families
from tpo_jax.checkpoints.huggingface import flatten, weights
from tpo_jax.checkpoints.models import load_model
from tpo_jax.data.clips import Clip
from tpo_jax.data.collate import collate, visual_sizes
from tpo_jax.data.processor import Processor
from tpo_jax.families.qwen_vl import published
from tpo_jax.families.weights import to_torch
from tpo_jax.generation.decode import Limits, decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.models.batch import BatchShape
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss

torch = originals.torch
LOGITS, LOGPS, LOSS, GRADIENT = 1e-4, 1e-3, 1e-5, 1e-5
QUESTION = "What is cut first?"


class Loaded(NamedTuple):
    """An original, and our parameters, read from its checkpoint."""

    name: str
    original: torch.nn.Module
    params: dict
    processor: Processor


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(tmp_path_factory, request):
    directory, config = tmp_path_factory.mktemp("original"), CONFIGS[request.param]
    original = originals.make_original(config)
    originals.write_checkpoint(directory, original, config)
    model = load_model(directory)
    assert model.config == config
    return Loaded(request.param, original, model.params, Processor(config, make_tokenizer()))


def clip_of(processor, frames, height, width, rate=1.4, seed=0):
    shape = (frames, height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    resized = processor.resize(pixels, rate=rate)
    return Clip(resized, (np.arange(frames) / rate).tolist(), frames / rate)


def batch_of(config, rows, visuals):
    """The rows as one batch, each padded to the longest."""
    frames, images = visual_sizes(visuals)
    shape = BatchShape(
        rows=len(rows),
        prefix=max(len(row.prefix_ids) for row in rows) + 3,
        questions=max(row.input_ids.shape[0] for row in rows),
        answers=rows[0].input_ids.shape[1],
        response=max(row.input_ids.shape[2] for row in rows),
        frames=frames,
        frame_shape=config.frame_shape,
        images=images,
    )
    return collate(config, rows, visuals, shape)


@functools.partial(jax.jit, static_argnums=0)
def ours_of(config, params, batch):
    """Logits of the continuations, positions of the prefix and the one after it."""
    model = families.bind(config, params)
    stream = model.prefix(batch)
    return model.decoder.head(model.hidden_states(batch)), stream.positions, stream.end


def check(loaded, rows, visuals, what, agree):
    """Positions equal as integers, logits of every continuation within the bar."""
    name, original, params, processor = loaded
    config = processor.config
    batch = batch_of(config, rows, visuals)
    logits, positions, end = map(np.asarray, ours_of(config, params, batch))
    for b, (row, visual) in enumerate(zip(rows, visuals, strict=True)):
        inputs = their_inputs(processor, row, visual)
        n, own = int(row.prefix_mask.sum()), int(row.input_mask[0, 0].sum())
        with torch.no_grad():
            theirs = original(**inputs).logits[0, n:]
        agree(f"{name}, {what}, logits", logits[b, 0, 0, :own], theirs, LOGITS)
        if "mm_token_type_ids" not in inputs:
            wanted = torch.arange(n + own).expand(3, 1, -1)
        else:
            given = {k: x for k, x in inputs.items() if not k.startswith("pixel_values")}
            wanted, _ = original.model.get_rope_index(**given)
        np.testing.assert_array_equal(positions[b, :n].T, wanted[:, 0, :n])
        assert end[b] == wanted[0, 0, n]


def test_videos_of_several_shapes_in_one_batch(loaded, agree):
    processor = loaded.processor
    sizes = [(4, 24, 40), (5, 50, 16), (1, 16, 16), (2, 200, 30)]
    clips = [clip_of(processor, *size) for size in sizes]
    rows = [processor.prompts([QUESTION], clip) for clip in clips]
    assert len({row.visual_index.max() for row in rows}) == len(rows)
    check(loaded, rows, [clip.frames for clip in clips], "videos", agree)


@pytest.mark.parametrize("loaded", ["Qwen2.5-VL"], indirect=True)
def test_text_behind_the_times_of_a_long_video(loaded, agree):
    """As the weights were trained: text continues after the largest position of any axis."""
    name, original, params, processor = loaded
    config = dataclasses.replace(processor.config, text_after="times")
    clip = clip_of(processor, 6, 24, 40, rate=0.4)
    row = processor.prompts([QUESTION], clip)
    logits, positions, end = map(
        np.asarray, ours_of(config, params, batch_of(config, [row], [clip.frames]))
    )
    inputs = their_inputs(processor, row, clip.frames, rate=0.4)
    given = {k: x for k, x in inputs.items() if not k.startswith("pixel_values")}
    wanted, _ = original.model.get_rope_index(**given)
    visual = inputs["mm_token_type_ids"][0] == 2
    after = int(visual.nonzero().max()) + 1
    shift = int(wanted[:, 0, visual].max()) + 1 - int(wanted[0, 0, after])
    wanted[:, :, after:] += shift
    assert shift > 10
    n = int(row.prefix_mask.sum())
    np.testing.assert_array_equal(positions[0, :n].T, wanted[:, 0, :n])
    assert end[0] == wanted[0, 0, n]
    with torch.no_grad():
        theirs = original(**inputs, position_ids=wanted).logits[0, n:]
    agree(f"{name}, text behind the times, logits", logits[0, 0, 0, : len(theirs)], theirs, LOGITS)


def test_one_and_several_images_in_one_batch(loaded, agree):
    processor, random = loaded.processor, np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8))
        for size in [(20, 33), (60, 10), (8, 8)]
    ]
    one, three = (processor.pictures(part) for part in (images[:1], images))
    questions = [QUESTION, "<image> then <image> and <image>?"]
    rows = [processor.prompts([q], p) for q, p in zip(questions, (one, three), strict=True)]
    check(loaded, rows, [one, three], "images", agree)


def test_text_alone(loaded, agree):
    processor = loaded.processor
    nothing = processor.pictures([])
    check(loaded, [processor.prompts([QUESTION], nothing)], [nothing], "text alone", agree)


def test_token_ids_are_those_of_the_published_prompt(loaded):
    processor = loaded.processor
    for frames in (4, 5, 2):
        clip = clip_of(processor, frames, 24, 40, rate=8.0)
        row = processor.prompts([QUESTION], clip)
        ids = their_inputs(processor, row, clip.frames)["input_ids"][0].tolist()
        text = originals.published_prompt(processor.config, clip.frames, clip.times, QUESTION)
        assert ids == processor.encode(text)


def test_loss_and_gradients(loaded, agree):
    name, original, params, processor = loaded
    config = processor.config
    clip = clip_of(processor, 4, 24, 40)
    answers = ["The blue one is cut. " * 5, "No."]
    row = processor.answers([QUESTION], [answers], clip)
    batch = batch_of(config, [row], [clip.frames])
    n, sums, means = int(row.prefix_mask.sum()), [], []
    for a in range(2):
        inputs = their_inputs(processor, row, clip.frames, answer=a)
        logps = torch.log_softmax(original(**inputs).logits[0, n:], dim=-1)
        mask = row.target_mask[0, a][: len(logps)]
        targets = torch.tensor(row.target_ids[0, a][: len(logps)].astype(np.int64))
        taken = logps.gather(1, targets[:, None])[:, 0][torch.tensor(mask)]
        sums.append(taken.sum())
        means.append(taken.mean())
    assert len(taken) < 100 <= int(row.target_mask[0, 0].sum())
    summed = torch.stack(sums)
    reference = summed.detach().round() + torch.tensor([3.0, -4.0])
    ratio = summed - reference
    loss = -torch.nn.functional.logsigmoid(0.1 * (ratio[0] - ratio[1])) - 0.5 * means[0]
    original.zero_grad()
    loss.backward()

    @jax.jit
    def ours(params):
        def objective(params):
            logps = families.bind(config, params).token_logps(batch)
            mask, given = jnp.asarray(batch.target_mask), jnp.asarray(reference.numpy())
            how = Objective(beta=0.1, alpha=0.5)
            return tpo_loss(logps, mask, given[None, None], how, denominators(mask))[0], logps

        return jax.value_and_grad(objective, has_aux=True)(params)

    (our_loss, logps), gradients = ours(params)
    agree(f"{name} summed log-probabilities", logps.sum(-1)[0, 0], summed, LOGPS)
    agree(f"{name} DPO + SFT loss", our_loss, loss, LOSS)
    theirs, leaves, worst = dict(original.named_parameters()), flatten(gradients), 0.0
    for path, leaf in weights(config).leaves.items():
        parts = to_torch(leaf, np.asarray(leaves[path]))
        for stored, part in zip(leaf.names, parts, strict=True):
            wanted = theirs[stored].grad.numpy()
            worst = max(worst, float(np.linalg.norm(part - wanted) / np.linalg.norm(wanted)))
    agree(f"{name} gradients, over their norm", worst, np.zeros(()), GRADIENT)


def test_greedy_tokens(loaded):
    name, original, params, processor = loaded
    config = processor.config
    clips = [clip_of(processor, 4, 24, 40), clip_of(processor, 2, 50, 16, seed=1)]
    rows = [processor.prompts([QUESTION], clip) for clip in clips]
    batch = batch_of(config, rows, [clip.frames for clip in clips])
    batch = dataclasses.replace(batch, seeds=np.zeros(2, np.uint32))
    limits = Limits(np.full((2, 1), 64, np.int32), np.array([-1], np.int32), 320)
    prefix, state = prefill(config, params, batch, Sampling(), limits, new_tokens=64)
    state = decode(config, params, prefix, state, batch.seeds, Sampling(), limits, 63)
    for b, (row, clip) in enumerate(zip(rows, clips, strict=True)):
        inputs = their_inputs(processor, row, clip.frames)
        with torch.no_grad():
            out = original.generate(
                **inputs, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        wanted = out[0, inputs["input_ids"].shape[1] :]
        np.testing.assert_array_equal(np.asarray(state.tokens)[b, 0], wanted)
    assert len(np.unique(state.tokens)) > 5


# Counted of `transformers`' models on the meta device; `test_full_sizes` counts the 2B again.
PARAMETERS = {
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
    "qwen3_vl_32b": 33_357_390_064,
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen2_5_vl_72b": 73_410_777_344,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_sizes(name):
    config = families.preset(name)
    shapes = flatten(families.abstract_params(config))
    assert sum(x.size for x in shapes.values()) == PARAMETERS[name]
    values = published.new_config(config, "bfloat16")["config.json"]
    with torch.device("meta"):
        original = originals.architecture(config)(originals.made_of(config, values))
    theirs = {name: tuple(x.shape) for name, x in original.named_parameters()}
    assert theirs == dict(weights(config).tensors)
