"""Phrases are what is left of two answers when their common tokens are taken out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.data.phrases import phrase_mask

ANSWERS = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def batch(*pairs, R=20, question=2):
    """Target ids and mask of pairs whose continuation opens with unlabelled tokens."""
    ids, mask = np.full((len(pairs), 2, R), 9), np.zeros((len(pairs), 2, R), bool)
    for q, pair in enumerate(pairs):
        for a, answer in enumerate(pair):
            ids[q, a, question : question + len(answer)] = answer
            mask[q, a, question : question + len(answer)] = True
    return ids, mask


def test_only_the_differing_word_is_a_phrase():
    ids, mask = batch(([4, 1, 5, 7], [4, 2, 3, 5, 7]), ([1, 2], [1, 2, 3]))
    found = phrase_mask(ids, mask)
    assert [np.flatnonzero(x).tolist() for x in found[0]] == [[3], [3, 4]]
    assert [np.flatnonzero(x).tolist() for x in found[1]] == [[], [4]]


@given(ANSWERS, ANSWERS)
def test_the_rest_is_common_to_both(chosen, rejected):
    ids, mask = batch((chosen, rejected))
    found = phrase_mask(ids, mask)
    assert (found <= mask).all()
    rest = [ids[0, a][mask[0, a] & ~found[0, a]].tolist() for a in (0, 1)]
    assert rest[0] == rest[1]
    assert found.any() == (chosen != rejected)


@given(ANSWERS, ANSWERS, st.integers(0, 3))
def test_padding_and_question_do_not_matter(chosen, rejected, question):
    found = [
        [x[m].tolist() for x, m in zip(phrase_mask(ids, mask)[0], mask[0], strict=True)]
        for ids, mask in (
            batch((chosen, rejected)),
            batch((chosen, rejected), R=16, question=question),
        )
    ]
    assert found[0] == found[1]


def test_absent_pairs_have_no_phrases():
    ids, mask = batch(([1], [2]))
    assert not phrase_mask(ids, np.zeros_like(mask)).any()
