"""A model directory's tokenizer: `tokenizer.json`, or `vocab.json` and `merges.txt`."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from tpo_jax.errors import InputError

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# What every Qwen2 model was trained with; smaller vocabularies are nobody's but ours.
_QWEN2_IDS = {"<|endoftext|>": 151643, IM_START: 151644, IM_END: 151645}
# How Qwen2 splits a text before merging, which `vocab.json` and `merges.txt` do not say.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def has_tokenizer(directory: str | Path) -> bool:
    """Whether the directory holds the files of a tokenizer."""
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def load_tokenizer(directory: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a model directory.

    Read is `tokenizer.json` or, where there is none, `vocab.json` and `merges.txt` with the added
    tokens of `tokenizer_config.json` and `added_tokens.json`.

    Args:
        directory: where the files lie.
        vocab_size: embedding rows of the model that is to read its ids; None: not checked.

    Raises:
        InputError: no such files, not a tokenizer, a chat marker or the newline is not one id, an
            id that is not the one the directory or Qwen2 gives the token, or that has no embedding
            row.
    """
    directory = Path(directory)
    path, added = directory / "tokenizer.json", _added_tokens(directory)
    if not path.is_file() and (directory / "vocab.json").is_file():
        path = directory / "vocab.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the directory must hold the tokenizer")
    try:
        if path.name == "tokenizer.json":
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = _from_merges(path, directory / "merges.txt", added)
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a tokenizer: {reason}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for id_, token in added.items():
        if (found := tokenizer.token_to_id(token.content)) != id_:
            raise InputError(
                f"{path}: {token.content!r} is id {found}, the added tokens beside it say {id_}"
            )
    for marker in (IM_START, IM_END, "\n"):
        if len(ids := tokenizer.encode(marker, add_special_tokens=False).ids) != 1:
            raise InputError(f"{path}: {marker!r} must be one id of the template, but is {ids}")
    if vocab_size is not None:
        _check_ids(path, tokenizer, vocab_size)
    return tokenizer


def _check_ids(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    other = "the tokenizer belongs to another model"
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise InputError(f"{path}: id {largest} exceeds the {vocab_size} embedding rows; {other}")
    for token, id_ in _QWEN2_IDS.items() if vocab_size > max(_QWEN2_IDS.values()) else ():
        if (found := tokenizer.token_to_id(token)) != id_:
            raise InputError(
                f"{path}: {token} is id {found}, but {id_} in the Qwen2 vocabulary of a model with "
                f"{vocab_size} embedding rows; {other}"
            )


def _from_merges(vocab: Path, merges: Path, added: dict[int, AddedToken]) -> Tokenizer:
    tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([added[id_] for id_ in sorted(added)])
    return tokenizer


def _added_tokens(directory: Path) -> dict[int, AddedToken]:
    """Tokens beyond the vocabulary by id, as the files beside it list them."""
    tokens = {}
    try:
        path = directory / "added_tokens.json"
        if path.is_file():
            for content, id_ in json.loads(path.read_text(encoding="utf-8")).items():
                tokens[int(id_)] = AddedToken(content, normalized=False, special=True)
        path = directory / "tokenizer_config.json"
        if path.is_file():
            listed = json.loads(path.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
            for id_, token in listed.items():
                tokens[int(id_)] = AddedToken(token.pop("content"), **token)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not the added tokens of a tokenizer ({reason})") from error
    return tokens
