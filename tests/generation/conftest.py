"""A small tokenizer, random models of both families, and random rows."""

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from tpo_jax import families
from tpo_jax.data.prompts import build_prompts
from tpo_jax.families.llava_qwen.template import INFERENCE
from tpo_jax.worlds.tokenizer import train_tokenizer

QUESTIONS = ["Who?", "What colour is the ball that appears first?", "Where is it, at the end?"]


def of(preset: str) -> pytest.MarkDecorator:
    """Mark a test of what all families share: it runs with one model."""
    return pytest.mark.parametrize("model", [preset], indirect=True)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(QUESTIONS, vocab_size=300)


@pytest.fixture(scope="session", params=["tiny_longva", "tiny_llava_video"])
def model(request):
    """Config and parameters, biases random too."""
    config = families.preset(request.param)
    draws = np.random.default_rng(1)

    def draw(path, leaf):
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return (offset + 0.05 * draws.standard_normal(leaf.shape)).astype(np.float32)

    return config, jax.tree_util.tree_map_with_path(draw, families.abstract_params(config))


@pytest.fixture(scope="session")
def videos(model):
    """Frames `[3, 4, S, S, 3]` of three videos."""
    S = model[0].tower.image_size
    return np.random.default_rng(0).integers(0, 256, (3, 4, S, S, 3), np.uint8)


@pytest.fixture(scope="session")
def prompt(model, tokenizer):
    """Prompts of one video of four frames."""

    def build(questions, **arguments):
        visual = model[0].visual_tokens(4)
        return build_prompts(
            tokenizer, questions, visual, cut="video", template=INFERENCE, **arguments
        )

    return build
