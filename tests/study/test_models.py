"""The first stages of the quickstart with a model that sees pairs of frames."""

import dataclasses

import jax
import numpy as np
import pytest

from tpo_jax import families
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.errors import InputError
from tpo_jax.study import quickstart, stages
from tpo_jax.study.asking import ask, generator_of
from tpo_jax.study.rows import tiny

MODEL, SEED = "tiny_qwen3_vl", 3


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """Random weights whose encoder has learned for one step from two short videos."""
    folder = tmp_path_factory.mktemp("quickstart")
    scale = dataclasses.replace(stages.SCALES["smoke"], encoder_steps=1)
    stages.make_tokenizer(folder, SEED, MODEL)
    stages.render(folder, "short", SEED + stages.SHORT_WORLD, [23, 34])
    stages.initial_model(folder, scale, SEED, MODEL)
    return folder / "initial"


def test_only_the_encoder_is_trained(initial):
    before, after = families.init_params(families.preset(MODEL), SEED), load_model(initial).params
    same = jax.tree.map(np.array_equal, before, after)
    moved = [jax.tree_util.keystr(path) for path, x in jax.tree.leaves_with_path(same) if not x]
    assert moved and not any(name.startswith("['decoder']") for name in moved)


def test_questions_are_asked_about_the_frames_of_a_video(initial):
    videos = stages.videos_of(initial.parent, "short")
    clips = stages.clips_of(videos, 6)
    questions = [[q.text for q in video.questions[:2]] for video in videos]
    answers = ask(generator_of(initial), clips, questions)
    assert [len(texts) for texts in answers] == [2, 2]


def test_a_directory_is_of_one_model_seed_and_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "short_stages", lambda *_: 1 / 0)
    smoke, full = stages.SCALES["smoke"], stages.SCALES["full"]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):  # it begins, and goes on
            quickstart.run(tmp_path, smoke, SEED, lambda *_: None, MODEL)
    for scale, seed, model, message in (
        (smoke, SEED, stages.MODEL, f"begun with model={MODEL}, not tiny_longva"),
        (smoke, 4, MODEL, "begun with seed=3, not 4; choose another --workdir"),
        (full, SEED, MODEL, "begun with short_videos=32, not 4500"),
    ):
        with pytest.raises(InputError, match=message):
            quickstart.run(tmp_path, scale, seed, lambda *_: None, model)


def test_a_row_that_was_killed_before_its_mean_is_made_again(initial, tmp_path, monkeypatch):
    start = load_model(initial)
    other = jax.tree.map(lambda x: np.asarray(x) + 1, start.params)

    def train(config, directory):
        save_model(directory / "model", start.config, other, start.tokenizer_directory)
        return directory / "model"

    config = tiny()
    config.model.checkpoint = str(initial)
    call = ("row", "row/trained.json", stages.train_row, config, tmp_path / "row", train, 0.25)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(stages, "average", lambda *_: 1 / 0)
        stages.Stages(tmp_path)(*call)
    assert (tmp_path / "row/model").exists()
    stages.Stages(tmp_path)(*call)
    mean = load_model(tmp_path / "row/model").params
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(y, x + 0.75, atol=1e-5), start.params, mean
    )
