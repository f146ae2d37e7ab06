"""A byte-level BPE over the world's language, in the layout of Qwen2's tokenizer."""

import os
import pathlib
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tpo_jax.worlds.questions import make_questions
from tpo_jax.worlds.timeline import make_timeline

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE_WORDS = ("system\nYou are a helpful assistant.", "user\n", "assistant\n")


def world_texts(seed: int, videos: int = 500) -> list[str]:
    """Return the texts of `videos` long videos and of the chat template; renders nothing."""
    texts = list(TEMPLATE_WORDS) * videos
    for index in range(videos):
        for question in make_questions(make_timeline(seed, index, 96), seed, index, count=16):
            texts += [question.text, question.answer]
    return texts


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> tokenizers.Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` ids, special tokens first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, directory: str | os.PathLike) -> pathlib.Path:
    """Write `tokenizer.json` into `directory`, where `data.tokenizer.load_tokenizer` finds it."""
    path = pathlib.Path(directory) / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path
