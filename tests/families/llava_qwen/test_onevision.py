"""LLaVA-OneVision against `LlavaOnevisionForConditionalGeneration` of `transformers`: the same
numbers on a video, one image and several; its files in and out.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from PIL import Image

from tests import originals
from tests.batches import one_row
from tests.commands import call
from tests.random_params import random_params
from tpo_jax import families
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.checkpoints.models import load_config, load_model, save_model
from tpo_jax.data.images import read_pictures
from tpo_jax.errors import InputError
from tpo_jax.models.decoder import PrefixStream

torch, transformers = originals.torch, originals.transformers
MODULE, LOGITS = 1e-5, 1e-4
SIDE, IMAGE, VIDEO = 110, 95, 96
TILES = [[SIDE * h, SIDE * w] for h in range(1, 7) for w in range(1, 7)]


def make_model(tied):
    """A tiny model with 27x27 patches a frame, as at full size."""
    torch.manual_seed(0)
    config = transformers.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": SIDE,
            "patch_size": 4,
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 52,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 97,
            "hidden_size": 60,
            "intermediate_size": 84,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": tied,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=TILES,
        attn_implementation="eager",
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    originals.randomize(model)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def onevision(request, tmp_path_factory):
    model, directory = make_model(request.param), tmp_path_factory.mktemp("onevision")
    model.save_pretrained(directory)
    return model, directory, load_model(directory)


def normalised(views):
    """uint8 [n, S, S, 3] to float32 [n, 3, S, S], as SigLIP's processor."""
    return torch.tensor((views.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


def random_image(width, height, seed=0):
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def tokens_and_logits(loaded, batch, ids, index):
    @jax.jit
    def ours(params, batch):
        model = families.bind(loaded.config, params)
        tokens = model.encode(batch)
        x = model.embed_prefix(np.array([ids]), tokens, np.array([index]))
        hidden = model.decoder.sequence(PrefixStream(x, jnp.ones((1, len(ids)), bool)))
        return tokens[0], (hidden @ model.decoder.head_kernel)[0]

    return ours(loaded.params, batch)


def around(tokens, placeholder):
    """Ids with placeholders for visual tokens: theirs, ours, and which visual token sits where."""
    texts = [[5, 6, 7], *[[11 + i] for i in range(len(tokens))]]
    theirs, ours, index, seen = list(texts[0]), list(texts[0]), [-1] * 3, 0
    for n, text in zip(tokens, texts[1:], strict=True):
        theirs += [placeholder] * n + text
        ours += [0] * n + text
        index += [*range(seen, seen + n), *[-1] * len(text)]
        seen += n
    return torch.tensor([theirs]), ours, index


def test_video(onevision, agree):
    model, _, loaded = onevision
    shape = (3, SIDE, SIDE, 3)
    frames = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    n = loaded.config.visual_tokens(3)
    assert n == 3 * 196 + 1
    ids, ours, index = around([n], VIDEO)
    with torch.no_grad():
        pixels = normalised(frames)[None]
        tokens = model.model.get_video_features(pixels).pooler_output[0]
        theirs = model(input_ids=ids, pixel_values_videos=pixels).logits[0]
    found = jax.jit(lambda p, f: families.bind(loaded.config, p).encode_frames(f))
    name = "LLaVA-OneVision" + ", tied" * loaded.config.decoder.tied
    agree(f"{name} video to tokens", found(loaded.params, frames[None])[0], tokens, MODULE)
    batch = one_row(loaded.config, frames, None, len(ours))
    _, logits = tokens_and_logits(loaded, batch, ours, index)
    agree(f"{name} video, logits", logits, theirs, LOGITS)


# One tile; a wide one that is cut; one that is shrunk to nine tiles; several.
SIZES = [[(90, 90)], [(150, 60)], [(660, 220)], [(150, 60), (70, 100)]]


@pytest.mark.parametrize("onevision", [False], ids=["untied"], indirect=True)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_images(onevision, sizes, agree):
    model, _, loaded = onevision
    config = loaded.config
    pictures = read_pictures([random_image(*s, i) for i, s in enumerate(sizes)], config)
    count = len(pictures.views) // len(sizes)
    views = normalised(pictures.views)
    inputs = {
        "pixel_values": views.reshape(len(sizes), count, *views.shape[1:]),
        "image_sizes": torch.tensor([(height, width) for width, height in sizes]),
        "batch_num_images": torch.tensor([len(sizes)]),
    }
    with torch.no_grad():
        tokens = torch.cat(list(model.model.get_image_features(**inputs).pooler_output))
    n = sum(pictures.tokens)
    name = "LLaVA-OneVision"
    what = f"image of {sizes[0][0]}x{sizes[0][1]}" if len(sizes) == 1 else f"{len(sizes)} images"
    if n > 3000:  # the decoder's attention would take gigabytes
        batch = one_row(config, pictures, None, n + 7)
        found = jax.jit(lambda p, b: families.bind(config, p).encode(b))(loaded.params, batch)
        agree(f"{name} {what} to tokens", found[0, :n], tokens, MODULE)
        return
    ids, ours, index = around(pictures.tokens, IMAGE)
    with torch.no_grad():
        theirs = model(input_ids=ids, **inputs).logits[0]
    found, logits = tokens_and_logits(
        loaded, one_row(config, pictures, None, len(ours)), ours, index
    )
    agree(f"{name} {what} to tokens", found[:n], tokens, MODULE)
    agree(f"{name} {what}, logits", logits, theirs, LOGITS)


def test_views_are_those_of_its_processor(onevision):
    """One image in tiles; several padded to squares."""
    config = onevision[2].config
    processor = transformers.models.llava_onevision.LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=TILES,
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    for sizes in ([(150, 60)], [(150, 60), (70, 100)]):
        images = [random_image(*size, i) for i, size in enumerate(sizes)]
        theirs = processor([images], return_tensors="np")["pixel_values"]
        ours = normalised(read_pictures(images, config).views).numpy()
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-5)


def tensors(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(file, "np") as shard:
            found |= {name: shard.get_tensor(name).tobytes() for name in shard.keys()}  # noqa: SIM118
    return found


def test_there_and_back(onevision, tmp_path):
    """In and out again in the same layout is the same; the other layout holds the same model."""
    model, directory, loaded = onevision
    save_model(tmp_path / "native", loaded.config, loaded.params, directory)
    native = load_model(tmp_path / "native")
    assert native.config == loaded.config
    for name, layout in (("same", ""), ("original", "original"), ("again", "transformers")):
        (tmp_path / name).mkdir()
        kept = tmp_path / "native" / "huggingface" if name != "again" else None
        export_model(tmp_path / name, native.config, native.params, kept, layout=layout)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "same" / file).read_bytes() == (directory / file).read_bytes()
    for name in ("original", "again"):
        other = load_model(tmp_path / name)
        assert other.config == loaded.config
        jax.tree.map(np.testing.assert_array_equal, other.params, loaded.params)
    names = set(tensors(tmp_path / "original"))
    assert "model.mm_projector.0.weight" in names
    assert ("lm_head.weight" in names) != loaded.config.decoder.tied
    found, info = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info.values()), info
    theirs = model.state_dict()
    for name, value in found.state_dict().items():
        # No output depends on SigLIP's post-norm, which only a kept checkpoint gives back.
        assert "post_layernorm" in name or torch.equal(value, theirs[name]), name


def test_a_tied_table_is_tied_again(tmp_path):
    """A trained table is written to both of its names where the checkpoint had both."""
    model = make_model(tied=True)
    source, back = tmp_path / "source", tmp_path / "back"
    model.save_pretrained(source)
    held = safetensors.torch.load_file(source / "model.safetensors")
    table = held["language_model.model.embed_tokens.weight"]
    held["language_model.lm_head.weight"] = table.clone()
    originals.save_file(held, source / "model.safetensors")
    loaded = load_model(source)
    assert "head" not in loaded.params["decoder"]
    params = jax.tree.map(lambda x: x, loaded.params)
    params["decoder"]["embed"]["embedding"] += 1.0
    save_model(tmp_path / "native", loaded.config, params, source)
    back.mkdir()
    export_model(back, loaded.config, params, tmp_path / "native" / "huggingface")
    found = tensors(back)
    assert found["language_model.lm_head.weight"] == (table + 1).numpy().tobytes()
    assert found["language_model.model.embed_tokens.weight"] == (table + 1).numpy().tobytes()
    held["language_model.lm_head.weight"] += 1
    originals.save_file(held, source / "model.safetensors")
    with pytest.raises(InputError, match="lm_head.weight differs from"):
        load_model(source)


@pytest.mark.parametrize("onevision", [True], ids=["tied"], indirect=True)
def test_one_gradient_of_a_tied_table(onevision):
    """It is the sum of both uses: that of the embedding and of the head, were they two tables."""
    _, _, loaded = onevision
    ids = np.arange(10)[None]

    def loss(embedding, head):
        decoder = loaded.params["decoder"] | {"embed": {"embedding": embedding}}
        model = families.bind(loaded.config, loaded.params | {"decoder": decoder})
        hidden = model.decoder.sequence(
            PrefixStream(model.decoder.embed(ids), jnp.ones(ids.shape, bool))
        )
        return jnp.sin(hidden @ (model.decoder.head_kernel if head is None else head)).sum()

    @jax.jit
    def gradients(table):
        return jax.grad(loss)(table, None), *jax.grad(loss, argnums=(0, 1))(table, table.T)

    both, first, second = gradients(loaded.params["decoder"]["embed"]["embedding"])
    np.testing.assert_allclose(both, first + second.T, atol=1e-4)


def test_command_to_the_other_layout(onevision, tmp_path):
    _, directory, loaded = onevision

    native, original = tmp_path / "native", tmp_path / "original"
    results = call(
        "convert",
        {"input": directory, "output": native},
        {"input": native, "output": original, "layout": "original"},
    )
    assert [result.code for result in results] == [0, 0], results
    assert load_config(original) == loaded.config
    with pytest.raises(InputError, match=r"--tower=.*has a tower of its own"):
        load_config(directory, tmp_path)
    values = json.loads((original / "config.json").read_text())
    assert values["architectures"] == ["LlavaQwenForCausalLM"]


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaled_positions_are_refused(onevision, tmp_path, key):
    values = json.loads((onevision[1] / "config.json").read_text())
    for file in onevision[1].glob("*.safetensors*"):
        (tmp_path / file.name).symlink_to(file)
    for scaling in ({"rope_type": "yarn", "factor": 4.0}, "yarn"):
        changed = values | {"text_config": values["text_config"] | {key: scaling}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=f"{key}=.*: scaled positions are not supported"):
            load_config(tmp_path)


def test_what_the_layout_cannot_hold(tmp_path):
    config = families.preset("tiny_llava_video")
    params = random_params(config)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="has pooling bilinear only"):
        export_model(tmp_path / "out", config, params, None, layout="transformers")
