"""The tokenizer, models and rows of the generation tests."""

from tests.generation.conftest import model, prompt, tokenizer, videos

__all__ = ["model", "prompt", "tokenizer", "videos"]
