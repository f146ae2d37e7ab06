"""A model of the server: what start-up compiles."""

import numpy as np
import pytest

from tests.serving.conftest import QUESTIONS
from tpo_jax.generation.decode import decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.serving.models import Source, Visual, load, warm_up


@pytest.mark.slow
def test_the_first_question_compiles_nothing(folder) -> None:
    model = load(Source(folder / "tpo"), "tpo", max_new_tokens=16, dtype="float32")
    warm_up(model, num_frames=4)
    compiled = [program._cache_size() for program in (prefill, decode)]
    frames = np.random.default_rng(0).integers(0, 256, (4, *model.config.frame_shape), np.uint8)
    limit = np.full((1, 1), 9, np.int32)
    for duration in (3.5, 250.0):
        times = tuple(np.linspace(0, duration, 4).tolist())
        visual = Visual((duration,), frames, times, duration)
        row = model.row([QUESTIONS[0]], visual)
        for sampling in (Sampling(), Sampling(0.7, top_k=5, top_p=0.9)):
            done = lambda: np.zeros((1, 1), bool)  # noqa: E731
            *_, [[answer]] = model.answers([visual], [row], [1], sampling, limit, done, [[("!",)]])
            assert answer.finished
    assert [program._cache_size() for program in (prefill, decode)] == compiled
