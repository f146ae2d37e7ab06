"""A model directory's tokenizer: `tokenizer.json`, or `vocab.json` and `merges.txt`.

`tokenizers` loads `tokenizer.json` in a second. `transformers.AutoTokenizer` makes the same object
of it but takes six seconds more, most of them to import, in every command that loads a model; so it
loads only directories without that file.
"""

import contextlib
import json
from collections.abc import Container, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from tpo_jax import families
from tpo_jax.errors import InputError, note
from tpo_jax.families.template import PLACEHOLDERS
from tpo_jax.io.files import read_json_object
from tpo_jax.models.config import ModelConfig


def has_tokenizer(directory: str | Path) -> bool:
    """Return whether a directory holds the files of a tokenizer."""
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def load_tokenizer(directory: str | Path, config: ModelConfig | None = None) -> Tokenizer:
    """Load the tokenizer of a model directory.

    It is `tokenizer.json` or, if absent, `vocab.json` and `merges.txt`, split as Qwen2 does, with
    the added tokens of `tokenizer_config.json` and `added_tokens.json`.

    Added tokens without an embedding row are left out, so that their text never becomes such an id;
    a note says so. Added tokens of placeholders are left out, too: in an answer these are text.

    Args:
        config: Of the model that reads its ids; None: whether they fit is not checked.

    Raises:
        InputError: The files are missing or not a tokenizer; a token of the model's template is
            not one id; an id differs from the one that the directory or the published model gives
            the token, or a token that is not an added one has no embedding row.
    """
    directory = Path(directory)
    path, added = directory / "tokenizer.json", _added_tokens(directory)
    if not path.is_file() and (directory / "vocab.json").is_file():
        path = directory / "vocab.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the directory must hold the tokenizer")
    with _refused(path):
        if path.name == "tokenizer.json":
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = _from_merges(directory)
            tokenizer.add_tokens([added[id_] for id_ in sorted(added)])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("A word, two words.", add_special_tokens=False)
        for id_, token in added.items():
            if (found := tokenizer.token_to_id(token.content)) != id_:
                raise InputError(
                    f"{path}: {token.content!r} is id {found}, the added tokens beside it say {id_}"
                )
        return _of_model(path, tokenizer, config) if config else tokenizer


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn what the library raises of a damaged file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:  # also the library's PanicException, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a tokenizer: {reason}") from error


def _of_model(path: Path, tokenizer: Tokenizer, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer without added tokens that have no embedding row, and without those of
    placeholders.

    Raises:
        InputError: another token has no embedding row; the template's tokens are not one id each.
    """
    template, vocab_size = families.of(config).templates["inference"], config.decoder.vocab_size
    other = "the tokenizer belongs to another model"
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    rowless = {token: id_ for token, id_ in vocabulary.items() if id_ >= vocab_size}
    needed = {*tokenizer.get_vocab(with_added_tokens=False), *template.tokens}
    if not needed.isdisjoint(rowless):
        largest = max(rowless.values())
        raise InputError(f"{path}: id {largest} exceeds the {vocab_size} embedding rows; {other}")
    # Visuals have no token in a row's texts, so these are words of an answer like any other.
    placeholders = set(PLACEHOLDERS) & vocabulary.keys() - needed
    if rowless or placeholders:
        tokenizer = _without(tokenizer, {*rowless, *placeholders})
    if rowless:
        first = min(rowless, key=lambda token: rowless[token])
        note(
            f"{path}: the {vocab_size} embedding rows have none for {len(rowless)} added tokens "
            f"({first!r} is id {rowless[first]}, …); their text is read like any other"
        )
    for marker in template.tokens:
        if len(ids := tokenizer.encode(marker, add_special_tokens=False).ids) != 1:
            raise InputError(f"{path}: {marker!r} must be one id of the template, but is {ids}")
    known = template.token_ids  # smaller vocabularies are not published ones
    for token, id_ in known.items() if vocab_size > max(known.values(), default=0) else ():
        if (found := tokenizer.token_to_id(token)) != id_:
            raise InputError(
                f"{path}: {token} is id {found}, but {id_} in the vocabulary of a model with "
                f"{vocab_size} embedding rows; {other}"
            )
    return tokenizer


def _without(tokenizer: Tokenizer, tokens: Container[str]) -> Tokenizer:
    """Return a tokenizer without some of its added tokens."""
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(values))


def _from_merges(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # five seconds, only where there is no tokenizer.json

    if not (directory / "merges.txt").is_file():
        raise ValueError("merges.txt is missing")
    return AutoTokenizer.from_pretrained(
        directory, tokenizer_type="qwen2", local_files_only=True, trust_remote_code=False
    ).backend_tokenizer


def _added_tokens(directory: Path) -> dict[int, AddedToken]:
    """Return the tokens beyond the vocabulary by id, as the files beside it list them."""
    tokens = {}
    try:
        path = directory / "added_tokens.json"
        if path.is_file():
            for content, id_ in read_json_object(path).items():
                tokens[int(id_)] = AddedToken(content, normalized=False, special=True)
        path = directory / "tokenizer_config.json"
        if path.is_file():
            listed = read_json_object(path).get("added_tokens_decoder") or {}
            for id_, token in listed.items():
                tokens[int(id_)] = AddedToken(token.pop("content"), **token)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not the added tokens of a tokenizer ({reason})") from error
    return tokens
