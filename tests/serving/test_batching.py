"""The engine with a model that echoes: every question gets its own answer in any batch."""

import queue
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Answer
from tpo_jax.serving.batching import Engine, Job
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.models import Visual

STEPS = 3


class Echo:
    """Answers with question, visual and seed, in three steps; 'fail' raises an error."""

    name = "echo"

    def __init__(self):
        self.batches = []

    def row(self, questions, visual):
        masks = {
            "prefix_ids": np.arange(5),
            "visual_index": np.full(5, -1),
            "prefix_mask": np.ones(5, bool),
            "input_mask": np.ones((len(questions), 1, 2), bool),
        }
        return SimpleNamespace(questions=questions, **masks)

    def answers(self, visuals, rows, seeds, sampling, new_tokens, dropped, stop):
        assert len(visuals) == len(rows) == len(seeds) <= new_tokens.shape[0]
        assert max(len(row.questions) for row in rows) <= new_tokens.shape[1]
        self.batches.append([(row.questions, sampling) for row in rows])
        if any("fail" in row.questions for row in rows):
            raise RuntimeError("broken")
        for step in range(1, STEPS + 1):
            yield [
                [
                    Answer(f"{question} {visual.key} {seed}", step, step == STEPS)
                    for question in row.questions
                ]
                for visual, row, seed in zip(visuals, rows, seeds, strict=True)
            ]
            assert dropped().shape == new_tokens.shape


def make_job(model, question, visual, temperature=0.0, seed=0):
    """Return a job and the queue that receives its answer."""
    states = queue.Queue()
    shown = Visual((visual,), np.zeros((2, 4, 4, 3), np.uint8), (0.0, 1.0), 2.0)
    row = model.row([question], shown)
    sampling = Sampling(temperature)
    return Job(model, shown, question, row, sampling, seed, 9, (), states.put), states


def last(states):
    while True:
        state = states.get(timeout=20)
        if isinstance(state, ApiError) or state.finished:
            return state


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())),
    st.integers(1, 5),
)
def test_every_question_gets_its_own_answer(asked, max_batch) -> None:
    model, engine = Echo(), Engine(Metrics(), max_batch, 1.0, 1000)
    jobs = [
        (i, *make_job(model, f"question {i}", visual, temperature, seed=i if temperature else 0))
        for i, (visual, temperature, _) in enumerate(asked)
    ]
    for (_, job, _), (_, _, leaves) in zip(jobs, asked, strict=True):
        engine.submit(job)
        job.wanted = not leaves
    engine.start()
    for i, job, states in jobs:
        if job.wanted:
            assert last(states).text == f"question {i} {job.visual.key} {job.seed}"
    engine.stop()
    for _, job, states in jobs:
        if not job.wanted:
            assert states.empty()
    for batch in model.batches:
        assert 1 <= sum(len(questions) for questions, _ in batch) <= max_batch
        assert len({sampling for _, sampling in batch}) == 1
        # A draw depends on the place in a row, so sampled questions have their own rows.
        assert all(s.temperature == 0 or len(questions) == 1 for questions, s in batch)


def test_one_broken_batch_does_not_end_the_server(capsys) -> None:
    model, engine = Echo(), Engine(Metrics(), 1, 0, 2)
    broken, fine = make_job(model, "fail", 0), make_job(model, "fine", 0)
    for job, _ in (broken, fine):
        engine.submit(job)
    with pytest.raises(ApiError, match="wait"):
        engine.submit(make_job(model, "too many", 0)[0])
    engine.start()
    assert last(broken[1]).status == 500
    assert last(fine[1]).text.startswith("fine")
    engine.stop()
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit(fine[0])
    assert "RuntimeError: broken" in capsys.readouterr().err
