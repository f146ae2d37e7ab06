"""Tokenizers of model directories: both ways of shipping one give the same ids; wrong ones are
named.
"""

import dataclasses
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tpo_jax import families
from tpo_jax.data.tokenizer import has_tokenizer, load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.template import IM_END, IM_START
from tpo_jax.families.template import PLACEHOLDERS
from tpo_jax.models.config import ModelConfig

MARKERS = ("<|endoftext|>", IM_START, IM_END)
texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from([*MARKERS, " 's", "\r\n\n", "  x", "123 4", "Ünïcode", "中文字"])
).map("".join)


@pytest.fixture(scope="module")
def slow_files(qwen2_tokenizer, tmp_path_factory):
    """The Qwen2 tokenizer as LongVA ships it: vocabulary, merges, added tokens in the config."""
    directory = tmp_path_factory.mktemp("slow")
    whole = json.loads((qwen2_tokenizer / "tokenizer.json").read_text())
    (directory / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in whole["model"]["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    values = {"added_tokens_decoder": added, "tokenizer_class": "Qwen2Tokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
    return directory


@pytest.fixture(scope="module")
def both(slow_files, qwen2_tokenizer):
    return load_tokenizer(slow_files, model(152064)), load_tokenizer(qwen2_tokenizer, model(152064))


def test_vocabulary_and_merges_are_the_whole_tokenizer(both):
    slow, fast = both
    assert slow.get_vocab(with_added_tokens=True) == fast.get_vocab(with_added_tokens=True)


@given(texts)
def test_vocabulary_and_merges_give_the_ids_of_the_whole_tokenizer(both, text):
    slow, fast = both
    ids = slow.encode(text, add_special_tokens=False).ids
    assert ids == fast.encode(text, add_special_tokens=False).ids
    assert slow.decode(ids) == fast.decode(ids)


def test_added_tokens_of_a_file_of_their_own(slow_files, both, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(slow_files / name, tmp_path)
    ids = {token: both[0].token_to_id(token) for token in MARKERS}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    text = f"{IM_START}user\nWho?{IM_END}\n"
    found = load_tokenizer(tmp_path, model(151646)).encode(text, add_special_tokens=False)
    assert found.ids == both[1].encode(text, add_special_tokens=False).ids


def model(rows: int) -> ModelConfig:
    config = families.preset("tiny_longva")
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=rows))


def tiny_tokenizer(specials) -> Tokenizer:
    """One id per byte, and the chat markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def test_placeholders_are_text(tmp_path):
    """Also where a tokenizer has a token for each, as those of LLaVA-OneVision."""
    tiny_tokenizer([IM_START, IM_END, *PLACEHOLDERS]).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, model(300))
    text = "The <video> tag, not <image>."
    assert len(tokenizer.encode(text).ids) == len(text)
    assert tokenizer.token_to_id(IM_END) == 257


def test_wrong_tokenizers_are_named(tmp_path):
    def fails(message, rows=None):
        with pytest.raises(InputError, match=message) as error:
            load_tokenizer(tmp_path, rows and model(rows))
        assert "\n" not in str(error.value)

    assert not has_tokenizer(tmp_path)
    fails("tokenizer.json: no such file")
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    fails("tokenizer.json: not a tokenizer")
    panics = json.loads(tiny_tokenizer([]).to_str())  # in Rust, which is no Exception of Python's
    panics["model"] |= {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    path.write_text(json.dumps(panics))
    fails("tokenizer.json: not a tokenizer: range end index")
    tiny_tokenizer([IM_START]).save(str(path))
    fails(r"'<\|im_end\|>' must be one id", 300)
    tiny_tokenizer([IM_START, IM_END]).save(str(path))
    assert load_tokenizer(tmp_path, model(258)).token_to_id(IM_END) == 257
    fails("id 257 exceeds the 257 embedding rows", 257)
    # Rows of a Qwen2 vocabulary that this tokenizer knows nothing of.
    fails(r"<\|endoftext\|> is id None, but 151643 in the vocabulary", 151646)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"added_tokens_decoder": {"258": {"content": IM_END}}}))
    fails(r"'<\|im_end\|>' is id 257, the added tokens beside it say 258")
    for wrong in ({"258": "x"}, {"258": {}}, {"x": {"content": IM_END}}, [1]):
        config.write_text(json.dumps({"added_tokens_decoder": wrong}))
        fails("tokenizer_config.json: not the added tokens")
    config.unlink()
    path.unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    fails("vocab.json: not a tokenizer")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    fails("must be one id", 300)
