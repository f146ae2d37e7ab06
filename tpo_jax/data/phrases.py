"""The tokens in which the two answers of a pair differ: the phrases of RRPO (arXiv 2504.12083).

Its authors let a language model mark the words that matter. Here they are what a token-level diff
does not match, a pure function of the pair: with answers that differ in a word, that word.
"""

import difflib

import numpy as np


def phrase_mask(target_ids: np.ndarray, target_mask: np.ndarray) -> np.ndarray:
    """Return which labelled tokens of the answers are not common to both.

    Args:
        target_ids: int `[..., 2, R]`, chosen and rejected.
        target_mask: bool `[..., 2, R]`.

    Returns:
        bool `[..., 2, R]`; false for one answer where the other only has more words.
    """
    differs = np.zeros_like(target_mask)
    for pair in np.ndindex(target_ids.shape[:-2]):
        places = [np.flatnonzero(mask) for mask in target_mask[pair]]
        chosen, rejected = (
            ids[at].tolist() for ids, at in zip(target_ids[pair], places, strict=True)
        )
        diff = difflib.SequenceMatcher(None, chosen, rejected, autojunk=False)
        for kind, a, b, c, d in diff.get_opcodes():
            if kind != "equal":
                differs[(*pair, 0, places[0][a:b])] = True
                differs[(*pair, 1, places[1][c:d])] = True
    return differs
