"""The programs of commands that answer and score, planned; compiled for the CPU here."""

import jax
import pytest
from tokenizers import Tokenizer

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.plan import report
from tpo_jax.planning import hlo, inference
from tpo_jax.planning.inference import COMMANDS, compile_command
from tpo_jax.planning.plan import TEXT_TOKENS, Plan, prefix_tokens
from tpo_jax.planning.search import frames_of, most_rows
from tpo_jax.training.experiment import base

MODEL = families.preset("tiny_longva")


@pytest.fixture
def on_cpu(monkeypatch):
    """Plan for two CPU devices in place of a slice."""
    monkeypatch.setattr(inference, "devices_of", lambda topology: jax.devices()[:2])


def config(**changes):
    found = base()
    found.data.num_frames = 4
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return found


@pytest.mark.parametrize("command", ["score", "serve"])
def test_programs_of_a_command(on_cpu, command):
    plan = compile_command(config(data__max_response=8), MODEL, "v5e:1x1", command, rows=1)
    shares = COMMANDS[command].axis == "context"
    assert plan.pairs == (1 if shares else 2)  # every device has a video, or all share one
    assert plan.fits and plan.peak > 0
    # Every answer token is a run of the decoder, on each device that shares the video.
    assert 1.0 <= plan.flops / plan.minimum_flops < (2.5 if shares else 1.6)
    text, what = report(plan), "2 pairs" if command == "score" else f"{plan.pairs} questions"
    assert f"batch: {what} of 4 frames" in text and text.endswith("\nfits")
    programs = ["compute", "memory", "links"] if command == "score" else ["prefill", "decode"]
    assert list(plan.seconds) == programs


def test_questions_share_a_video(on_cpu):
    changed = config(data__max_response=4, data__pairs_per_row=2, model__weights="int8")
    plan = compile_command(changed, MODEL, "v5e:1x1", "evaluate", rows=1)
    assert plan.pairs == 2 * 2
    assert 1.0 <= plan.flops / plan.minimum_flops < 1.6


def test_the_most_videos_at_a_time(on_cpu):
    """More videos take more memory; the largest batch that fits is found, with its flag."""

    def plan_of(rows):
        return compile_command(config(data__max_response=4), MODEL, "v5e:1x1", "curate", rows)

    fewest, more = plan_of(1), plan_of(4)
    assert (fewest.rows, more.rows) == (2, 4)  # one device of the two takes half of them
    assert fewest.peak < more.peak
    assert more.flags == "--config.local.batch_rows=4"
    text, hours = report(more, questions=1000), 1000 / more.pairs_per_hour
    assert f"1,000 questions: {hours:.1f} hours on this slice" in text


@pytest.mark.parametrize("fits, found", [(0, 2), (2, 2), (31, 16), (32, 32)])
def test_search_for_the_largest_batch(fits, found):
    def compile_at(rows):
        sizes = {"devices": 2, "chips": 2, "mesh": {}, "pairs": 1, "frames": 1, "prefix": 1}
        rows = max(rows, 2)
        return Plan("", **sizes, response=1, limit=1.0, peak=0.0, rows=rows, fits=rows <= fits)

    plan = most_rows(compile_at, 1)
    assert (plan.rows, plan.fits) == (found, fits > 0)


def test_a_prompt_that_the_context_does_not_hold(on_cpu):
    with pytest.raises(InputError, match="exceed the model's context of 1024"):
        compile_command(config(data__num_frames=1000), MODEL, "v5e:1x1", "serve")


def test_a_loop_that_ends_by_its_data_runs_as_often_as_is_said():
    def program(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ x, x)

    text = jax.jit(program).lower(jax.numpy.ones((64, 64))).compile().as_text()
    assert hlo.work(text, 7).flops == 7 * 2 * 64**3
    with pytest.raises(ValueError, match="does not count to a constant"):
        hlo.work(text)


def test_pairs_of_frames_and_their_times_count(qwen2_tokenizer):
    """A frame of Qwen3-VL's batch is two of the video, between markers and after its time."""
    model = families.preset("qwen3_vl_8b")
    tokenizer = Tokenizer.from_file(str(qwen2_tokenizer / "tokenizer.json"))
    assert len(tokenizer.encode("<12345.6 seconds>").ids) + 2 == model.frame_text
    for frames, visual in ((1, 768), (16, 8 * 768), (64, 17 * 768), (768, 17 * 768)):
        pairs = -(-frames // 2)
        needed = prefix_tokens(model, frames)
        # 33 frames are the longest video whose pairs are of 768 tokens within the pixel budget.
        assert needed - pairs * model.frame_text - visual == TEXT_TOKENS
        assert frames_of(model, needed) == 2 * pairs
