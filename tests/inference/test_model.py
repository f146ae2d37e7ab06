"""A loaded model in Python: answers, streams, images, text alone, and the README's first lines."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import tpo_jax
from tests.random_params import random_params
from tests.test_docs import ROOT, fences
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.data.processor import Processor
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, note
from tpo_jax.inference import scoring
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import place
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

QUESTIONS = ["What happens?", "Who is there?", "Why?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model in `model`, a video, another one in frames, and an image."""
    folder = tmp_path_factory.mktemp("inference")
    save_tokenizer(train_tokenizer(QUESTIONS, vocab_size=270), folder / "tokenizer")
    config = families.preset("tiny_longva")
    save_model(folder / "model", config, random_params(config), folder / "tokenizer")
    (video,) = make_videos(folder / "made", seed=1, seconds=[8], workers=1)
    Path(video.path).rename(folder / "video.mp4")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 36, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    (folder / "frames").mkdir()
    for i in range(3):
        Image.fromarray(np.roll(pixels, 9 * i, axis=1)).save(folder / "frames" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder) -> tpo_jax.Model:
    """On one device: a program for eight takes long to compile."""
    one = make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1])
    return tpo_jax.load(folder / "model", mesh=one)


def test_questions_are_answered_together_as_alone_and_in_pieces(model, folder) -> None:
    video, how = folder / "video.mp4", {"num_frames": 4, "max_new_tokens": 8}
    answers = model.answer(video, QUESTIONS, **how)
    assert [model.answer(str(video), question, **how) for question in QUESTIONS] == answers
    assert "".join(model.stream(video, QUESTIONS[0], **how)) == answers[0]
    clip = model.processor.video(video, 4)
    assert model.answer(clip, ["<video>\n" + QUESTIONS[0]], max_new_tokens=8) == answers[:1]
    with pytest.raises(InputError, match="nothing.mp4"):
        model.answer(folder / "nothing.mp4", QUESTIONS[0])


@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.05), ("int4", 0.5)])
def test_quantized_weights_score_nearly_alike_on_any_mesh(model, folder, weights, bound) -> None:
    pair = {"video": "video.mp4", "prompt": "Why?", "chosen": "It is red.", "rejected": "No."}
    meshes = [make_mesh(dict.fromkeys(AXES, 1) | {"tensor": n}, jax.devices()[:n]) for n in (1, 2)]
    loaded = [tpo_jax.load(folder / "model", mesh=mesh, weights=weights) for mesh in meshes]
    how = {"videos": folder, "num_frames": 2, "batch_size": 1}
    ((exact,), (one,), (two,)) = (m.score([pair], **how) for m in (model, *loaded))
    for name, tokens in (("chosen_logp", exact.chosen_tokens), ("rejected_logp", 3)):
        a, b, c = (getattr(score, name) for score in (exact, one, two))
        assert b == pytest.approx(c, abs=1e-4)
        assert 0 < abs(a - b) < bound * tokens


def test_a_quantized_model_streams_its_answer(folder) -> None:
    one = make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1])
    quantized = tpo_jax.load(folder / "model", mesh=one, weights="int8")
    answer = quantized.answer(None, "Why?", max_new_tokens=2)
    assert "".join(quantized.stream(None, "Why?", max_new_tokens=2)) == answer


def test_tpus_that_share_a_row_score_it_with_the_kernel(folder, program_for_tpus) -> None:
    config = families.preset("tiny_longva")
    heads = dataclasses.replace(config.decoder, heads=2, kv_heads=2, head_dim=128)
    config = dataclasses.replace(config, decoder=heads)
    processor = Processor(config, load_tokenizer(folder / "model", config))
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"context": 2}, jax.devices()[:2])
    model = place(processor, random_params(config), mesh)
    pair = {"video": "video.mp4", "prompt": "Why?", "chosen": "It is red.", "rejected": "No."}
    ask = functools.partial(model.score, [pair], videos=folder, num_frames=2)
    assert "tpu_custom_call" in program_for_tpus(scoring, "score_batch", ask)


def test_one_answer_is_scored_on_two_videos(model, folder) -> None:
    """As it is beside any other answer on either of them."""
    texts, how = {"prompt": "Why?", "chosen": "It is red."}, {"videos": folder, "num_frames": 2}
    one, two = (
        model.score([texts | {"video": video, "rejected": "No."}], **how)[0]
        for video in ("video.mp4", "frames")
    )
    pairs = [
        texts | {"video": "video.mp4", "rejected_video": "frames"},
        texts | {"video": "frames", "rejected": "No."},
    ]
    both, other = model.score(pairs, **how)
    assert both.chosen_logp == pytest.approx(one.chosen_logp, abs=1e-4)
    assert both.rejected_logp == pytest.approx(two.chosen_logp, abs=1e-4)
    assert abs(both.chosen_logp - both.rejected_logp) > 1e-3
    assert both.chosen_tokens == both.rejected_tokens == one.chosen_tokens
    assert other.rejected_logp == pytest.approx(two.rejected_logp, abs=1e-4)


def test_images_and_text_alone(model, folder) -> None:
    path, how = folder / "image.png", {"max_new_tokens": 8}
    with Image.open(path) as picture:
        two = model.answer(None, QUESTIONS, images=[path, picture.copy()], **how)
    text = model.answer(None, QUESTIONS, **how)
    assert two != text and all(isinstance(answer, str) for answer in two + text)
    with pytest.raises(InputError, match="not both"):
        model.answer(folder / "video.mp4", QUESTIONS[0], images=[path])


def test_draws_depend_on_the_seed_alone(model) -> None:
    how = {"sampling": tpo_jax.Sampling(temperature=2.0), "max_new_tokens": 8}
    drawn = [model.answer(None, QUESTIONS[0], seed=seed, **how) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_wrong_pairs_and_sampling_are_named(model, folder) -> None:
    pair = {"prompt": "Why?", "chosen": "Rain.", "rejected": "Snow."}
    for change, message in (
        ({"chosen": "Snow."}, "pair 1: chosen equals rejected"),
        ({"video": "nothing.mp4"}, "pair 1: .*nothing.mp4"),
        ({"video": "../video.mp4"}, "pair 1: .*must be a path inside"),
    ):
        with pytest.raises(InputError, match=message):
            model.score([pair, pair | change], videos=folder)
    with pytest.raises(InputError, match="'middle'"):
        model.score([pair | {"video": "video.mp4"}], videos=folder, rule="middle")
    for call, message in (
        (
            lambda: tpo_jax.load("gs://bucket/model"),
            "model directory=gs://bucket/model: must be on",
        ),
        (lambda: model.answer("gs://bucket/a.mp4", "Why?"), "video=gs://bucket/a.mp4: must be on"),
        (lambda: model.score([pair], videos="gs://bucket"), "videos=gs://bucket: must be on"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_misspelt_field_and_pairs_on_text_alone_are_told(model, capsys) -> None:
    note.cache_clear()
    pair = {"vidoe": "video.mp4", "prompt": "Why?", "chosen": "Rain.", "rejected": "Snow."}
    model.score([pair])
    assert capsys.readouterr().err.splitlines() == [
        "note: pairs: fields ignored: vidoe",
        "note: 1 of 1 pairs have no video and no image: scored on text alone",
    ]


def test_an_answer_takes_no_more_space_than_the_context(model) -> None:
    decoding = Decoding(max_new_tokens=10**9)
    assert model.generator(decoding).decoding.max_new_tokens == model.config.max_length


ASKED = ("video.mp4", "Why?")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.answer(None, ""), "an empty question asks nothing"),
        (lambda m: m.answer(None, ["Why?", " "]), "an empty question asks nothing"),
        (lambda m: m.answer(None, []), "no question: give one"),
        (lambda m: m.answer(None, 5), "question=5 must be a text, or a list of texts"),
        (lambda m: m.answer(None, {"Why?": 1}), "question={'Why\\?': 1} must be a text"),
        (lambda m: m.stream(None, ["Why?"]), r"question=\['Why\?'\] must be one text"),
        (lambda m: m.stream(None, ""), "an empty question asks nothing"),
        (lambda m: m.answer(np.zeros((2, 8, 8, 3), np.uint8), "Why?"), "video=<ndarray> must be"),
        (lambda m: m.answer("", "Why?"), "video='' must be a path, or what `processor.video`"),
        (lambda m: m.answer(None, "Why?", images="a.png"), "images='a.png' must be a list"),
        (lambda m: m.answer(None, "Why?", images=None), "images=<NoneType> must be a list"),
        (lambda m: m.answer(*ASKED, num_frames=0), "num_frames=0 must be a whole number of 1"),
        (lambda m: m.answer(*ASKED, num_frames="4"), "num_frames='4' must be a whole number"),
        (lambda m: m.answer(None, "Why?", max_new_tokens=1.5), "max_new_tokens=1.5 must be"),
        (lambda m: m.answer(None, "Why?", seed=-1), "seed=-1 must be a whole number of 0 or more"),
        (lambda m: m.answer(None, "Why?", sampling=0.7), "sampling=0.7 must be a tpo_jax.Sampling"),
        (lambda m: m.score("pairs.jsonl"), "pairs='pairs.jsonl' must be a list of pairs"),
        (lambda m: m.score({"prompt": "Why?"}), "pairs=<dict> must be a list of pairs; for one"),
        (lambda m: m.score([None]), "pair 0: must be an object with video, .*, not nothing"),
        (lambda m: m.score([], batch_size=0), "batch_size=0 must be a whole number of 1 or more"),
        (lambda m: m.score([], num_frames=True), "num_frames=True must be a whole number"),
        (lambda m: m.score([], videos="nowhere"), "videos=nowhere: no such folder"),
        (lambda m: m.score([], videos=__file__), "test_model.py: a file, not a folder"),
        (
            lambda m: place(m.processor, {}, mesh="fsdp"),
            "mesh='fsdp' must give axes their sizes",
        ),
        (
            lambda m: place(m.processor, {}, mesh={"fsdp": "a"}),
            "mesh={'fsdp': 'a'} must give axes",
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_named(model, call, message) -> None:
    with pytest.raises(tpo_jax.InputError, match=message):
        call(model)


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, tpo_jax; print(tpo_jax.__version__, 'load' in dir(tpo_jax)); "
    code += "print([name for name in ('jax', 'numpy', 'absl') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        tpo_jax.lode  # noqa: B018


def test_the_first_python_of_the_readme_runs(folder, tmp_path) -> None:
    """As printed, on a model directory, a video and a folder of the names it uses."""
    code = next(found["text"] for _, found in fences("README.md") if found["language"] == "python")
    model, video = re.findall(r'"([^"]+)"', code)[:2]
    (tmp_path / model).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / model).symlink_to(folder / "model")
    (tmp_path / video).parent.mkdir(parents=True)
    (tmp_path / video).symlink_to(folder / "video.mp4")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
