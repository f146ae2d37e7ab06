"""Tiny models through the commands: Qwen3-VL trained in full, Qwen2.5-VL with LoRA on a quantized
base; asked, scored, served and converted.
"""

import json
import math
import re
import shutil
import string

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.families.qwen_vl import tiny
from tests.families.qwen_vl.conftest import PRESETS, config_of
from tests.random_params import random_params
from tests.tiny_run import FRAMES, metrics, same_bits
from tpo_jax import families
from tpo_jax.checkpoints import huggingface_export as export
from tpo_jax.checkpoints.models import KEPT, open_model, save_model
from tpo_jax.data.shards import open_shards
from tpo_jax.errors import InputError
from tpo_jax.evaluation import niah, niah_files, niah_videos
from tpo_jax.evaluation.niah_cells import Cell
from tpo_jax.families.qwen_vl.processing import frames_in
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import load, load_processor, place
from tpo_jax.serving import models as serving
from tpo_jax.train import train
from tpo_jax.worlds.world import make_videos

QUANTIZED = {"Qwen3-VL": "", "Qwen2.5-VL": "int8"}  # the latter's projections have biases


@pytest.fixture(scope="module")
def weights(sizes):
    """How the run keeps the base."""
    return next(QUANTIZED[name] for name in PRESETS if families.preset(PRESETS[name]) == sizes)


@pytest.fixture(scope="module")
def trained(weights, tiny_world, initial, tmp_path_factory):
    """The directory of a run from these weights, two pairs a row, on shards of its own: of all
    weights, or of LoRA on a quantized base.
    """
    folder = tmp_path_factory.mktemp("trained")
    config = config_of(tiny_world, checkpoint=str(initial), weights=weights)
    if weights:
        config.lora.rank, config.lora.targets = 2, ("q_proj", "v_proj")
        config.train.freeze = ("tower", "projector", "decoder")
    config.data.pairs_per_row = 2
    config.data.limit = config.train.batch_size = 16
    config.data.shards = str(folder / "shards")
    # Without the reference log-probabilities that other tests left.
    others = shutil.ignore_patterns("reference-*")
    shutil.copytree(tiny_world / "shards", folder / "shards", ignore=others)
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def exported(initial, tmp_path_factory):
    """The directory in the published layout, which tests only read."""
    folder = tmp_path_factory.mktemp("exported")
    opened = open_model(initial)
    export.copy_files(initial, folder, export.SIDE_FILES)
    export.export_model(folder, opened.config, opened.params, None)
    return folder


def test_training_begins_at_the_reference(trained, sizes):
    [record] = metrics(trained)
    assert record["losses/total"] == pytest.approx(math.log(2), abs=1e-5)
    assert record["grad_norm"] > 0 and record["pairs"] == 16
    assert open_model(trained / "model").config == sizes


def test_scores_are_the_reference_of_a_run_from_the_same_weights(
    trained, initial, weights, tiny_world
):
    shards = trained.parent / "shards"
    [path] = shards.glob("reference-*.npz")
    expected = np.load(path)["logps"]
    records = open_shards(shards).index
    used = [i for i in range(len(records)) if np.isfinite(expected[i]).all()]
    pairs = [
        {
            "video": records[i].video_id,
            "prompt": records[i].question,
            "chosen": records[i].chosen,
            "rejected": records[i].rejected,
        }
        for i in used
    ]
    model = load(initial, dtype="float32", weights=weights)
    scores = model.score(pairs, videos=tiny_world / "videos", num_frames=FRAMES)
    found = np.array([[s.chosen_logp, s.rejected_logp] for s in scores])
    np.testing.assert_allclose(found, expected[used], rtol=1e-5)
    assert len(used) == 16 and len(np.unique(found)) == found.size


def test_the_server_answers_as_the_model(initial, video):
    question = "Who" + "?" * 42  # 64 tokens, rounded up by either: one program reads it
    model = load(initial, dtype="float32")
    served = serving.load(serving.Source(initial), "tiny", 6, "float32")
    clip = model.processor.video(video, 5)
    visual = serving.Visual(("video",), clip.frames, tuple(clip.times), clip.duration)
    row = served.row([question], visual)
    limit = np.full((1, 1), 6, np.int32)
    steps = served.answers(
        [visual], [row], [0], serving.Sampling(), limit, lambda: np.zeros((1, 1), bool), [[()]]
    )
    *_, [[answer]] = steps
    assert answer.text == model.answer(video, question, num_frames=5, max_new_tokens=6)


def test_weights_and_prompts_go_out_and_in(initial, exported, video, tmp_path):
    opened = open_model(initial)
    with pytest.raises(InputError, match="--layout=original: .* only transformers"):
        export.export_model(tmp_path, opened.config, opened.params, None, None, "original")
    published, native = (load(folder, dtype="float32") for folder in (exported, initial))
    assert published.config == opened.config
    assert same_bits(*jax.device_get((published.params, native.params)))
    clips, rows = [], []
    for processor in (published.processor, native.processor):
        clips.append(processor.video(video, 5))
        rows.append(processor.prompts(["Who?"], clips[-1]))
    assert same_bits(clips[0].frames, clips[1].frames) and same_bits(*rows)


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_checkpoint_is_given_back_byte_by_byte(name, tmp_path):
    originals = pytest.importorskip("tests.families.qwen_vl.originals")
    config = tiny.CONFIGS[name]
    for folder in ("published", "back"):
        (tmp_path / folder).mkdir()
    original = originals.make_original(config, seed=1)
    originals.write_checkpoint(tmp_path / "published", original, config)
    opened = open_model(tmp_path / "published")
    save_model(tmp_path / "native", opened.config, opened.params, tmp_path / "published")
    native = open_model(tmp_path / "native")
    assert native.config == opened.config == config
    kept = tmp_path / "native" / KEPT
    export.copy_files(tmp_path / "native", tmp_path / "back", export.SIDE_FILES)
    export.export_model(tmp_path / "back", native.config, native.params, kept)
    for file in (tmp_path / "published").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("sizes", ["Qwen2.5-VL"], indirect=True)
def test_adapters_have_the_published_names(trained, sizes):
    names = load_file(trained / "adapters" / "adapter_model.safetensors")
    first = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    assert first in names and len(names) == 2 * 2 * sizes.decoder.layers


def test_videos_beyond_the_context_are_one_line(initial, tiny_world, tmp_path):
    config = config_of(tiny_world, checkpoint=str(initial), max_length=150)
    config.data.num_frames = 200
    message = r"exceed the model's context of 150; (\d+) frames fit instead of 200"
    with pytest.raises(InputError, match=message) as error:
        train(config, tmp_path / "run")
    fit = int(re.search(message, str(error.value))[1])
    config.data.num_frames, config.train.num_steps = fit + 2, 1
    with pytest.raises(InputError, match=f"; {fit} frames fit instead of {fit + 2}"):
        train(config, tmp_path / "run")
    assert fit >= 2


def test_a_sentence_on_times_is_refused(initial, video):
    processor = load_processor(initial, time_instruction="inline")
    with pytest.raises(InputError, match="always told the times"):
        processor.prompts(["Who?"], processor.video(video, 5))


@pytest.mark.parametrize("sizes", ["Qwen3-VL"], indirect=True)
def test_a_needle_is_found_where_the_model_says_its_answer(sizes, initial, tmp_path):
    """One letter, the most likely of all: a video with the needle in it, and the question."""
    (movie,) = make_videos(tmp_path, seed=2, seconds=[9], workers=1)
    Image.new("RGB", (50, 20), "red").save(tmp_path / "odd.png")
    processor, params = load_processor(initial), random_params(sizes, seed=1)
    letters = [processor.tokenizer.token_to_id(letter) for letter in string.ascii_lowercase]
    others = np.setdiff1d(np.arange(sizes.decoder.vocab_size), letters)
    params["decoder"]["head"]["kernel"][:, others] = 0
    model = place(processor, params)

    def needles_of(answers):
        asked = [{"path": "odd.png", "prompt": "\nWhich?", "answer": text} for text in answers]
        (tmp_path / "needles.json").write_text(json.dumps(asked))
        needles, _ = niah_files.read_needles(tmp_path / "needles.json", processor)
        return [needle for _, needle in needles]

    (needle,) = needles_of("a")
    haystack = niah_files.read_haystack(movie.path, 8, processor)
    lengths, depths = (5, 8), (0.0, 1.0)
    generator = model.generator(Decoding(max_new_tokens=1))
    said = np.zeros((2, 2, 1), object)
    for i, j in np.ndindex(2, 2):
        clip = niah_videos.shown(processor, haystack, needle, Cell(lengths[i], depths[j], 0))
        assert len(clip.times) == frames_in(clip.frames) == lengths[i] + 1
        row = processor.prompts(["Which?"], clip)
        [[said[i, j, 0]]] = generator.answer([clip.frames], [row])
    never = next(letter for letter in string.ascii_lowercase if letter not in said)
    answers = [said[0, 0, 0], never]
    expected, needles = said == np.array(answers, object), needles_of(answers)
    assert expected.any() and not expected.all()
    found = niah.grid(model, haystack, needles, lengths, depths, batch_rows=4)
    assert (found == expected).all()


def test_a_tokenizer_without_vision_tokens_is_one_line(tiny_world, tmp_path):
    tokenizer = tiny_world / "tokenizer"
    config = config_of(tiny_world, preset="tiny_qwen3_vl", tokenizer=str(tokenizer))
    with pytest.raises(InputError, match=r"<\|vision_start\|>' must be one id of the template"):
        train(config, tmp_path / "run")
