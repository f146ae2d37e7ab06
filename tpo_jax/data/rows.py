"""One row of a batch, without `B`: the token sequences of a prompt and its answers as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tpo_jax.errors import InputError


class PrefixError(InputError):
    """A prefix longer than P."""


class Row(NamedTuple):
    """The texts of one video; keys, dtypes and shapes of `docs/architecture.md`, without `B`."""

    prefix_ids: np.ndarray  # int32 [P]
    prefix_mask: np.ndarray  # bool [P]
    visual_index: np.ndarray  # int32 [P]
    input_ids: np.ndarray  # int32 [Q, A, R]
    input_mask: np.ndarray  # bool [Q, A, R]
    target_ids: np.ndarray  # int32 [Q, A, R]
    target_mask: np.ndarray  # bool [Q, A, R]
    target_at: np.ndarray | None = None  # int32 [Q, A, R], where the prefix holds labels

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fields of a batch that this row has."""
        return {name: value for name, value in self._asdict().items() if value is not None}


# Keys of a row that have the shape of its continuations.
CONTINUATION = {"input_ids", "input_mask", "target_ids", "target_mask", "target_at"}


class Size(NamedTuple):
    """Tokens to pad to; 0: as many as the texts need."""

    prefix: int = 0  # P
    response: int = 0  # R


class Text(NamedTuple):
    """Token ids, and which of them are labelled."""

    ids: list[int]
    labels: list[bool]

    def split(self, at: int) -> tuple["Text", "Text"]:
        """Return the text before position `at`, and the text from there on."""
        return Text(self.ids[:at], self.labels[:at]), Text(self.ids[at:], self.labels[at:])


def joined(texts: Sequence[Text]) -> Text:
    """Return the texts as one."""
    return Text([i for t in texts for i in t.ids], [n for t in texts for n in t.labels])


def pack(
    prefix: Sequence[Text],
    continuations: Sequence[Sequence[Text]],
    visuals: Sequence[int],
    *,
    labelled: bool,
    size: Size = Size(),  # noqa: B008, a constant
) -> Row:
    """Return the texts and visual tokens of a row as arrays.

    Args:
        prefix: texts before, between and after the visuals.
        continuations: `[Q][A]`.
        visuals: number of tokens of every visual.
        labelled: whether there are labels; if not, all of a continuation is input.
        size: P and R to pad to.

    Raises:
        PrefixError: the prefix is longer than P.
        InputError: an answer is longer than R.
    """
    ids, labels, index = list(prefix[0].ids), list(prefix[0].labels), [-1] * len(prefix[0].ids)
    seen = 0
    for n, text in zip(visuals, prefix[1:], strict=True):
        ids += [0] * n + text.ids
        labels += [False] * n + text.labels
        index += [*range(seen, seen + n), *[-1] * len(text.ids)]
        seen += n
    # The hidden state of a position predicts the next token; nothing predicts the first.
    within = [(p - 1, ids[p]) for p in range(1, len(ids)) if labelled and labels[p]]

    def extra(text: Text) -> list[tuple[int, int]]:
        """Return the prefix positions that predict labels, each with its label."""
        return within + ([(len(ids) - 1, text.ids[0])] if labelled and text.labels[0] else [])

    used = max(len(t.ids) - labelled + len(extra(t)) for group in continuations for t in group)
    length, response = size.prefix or len(ids), size.response or used
    if len(ids) > length:
        raise PrefixError(
            f"the prefix has {len(ids)} tokens ({seen} visual, {len(ids) - seen} text), more than "
            f"the limit of {length}"
        )
    if used > response:
        raise InputError(f"an answer takes {used} tokens, more than the {response} of max_response")

    prefix_ids, visual_index = np.zeros(length, np.int32), np.full(length, -1, np.int32)
    prefix_ids[: len(ids)], visual_index[: len(ids)] = ids, index
    shape = (len(continuations), len(continuations[0]), response)
    input_ids, target_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    input_mask, target_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    target_at = np.full(shape, -1, np.int32)
    for q, group in enumerate(continuations):
        for a, text in enumerate(group):
            n = len(text.ids) - labelled
            input_ids[q, a, :n], input_mask[q, a, :n] = text.ids[:n], True
            if labelled:
                target_ids[q, a, :n], target_mask[q, a, :n] = text.ids[1:], text.labels[1:]
            for slot, (place, label) in enumerate(extra(text), n):
                target_at[q, a, slot] = place
                target_ids[q, a, slot], target_mask[q, a, slot] = label, True
    mask = np.arange(length) < len(ids)
    row = Row(prefix_ids, mask, visual_index, input_ids, input_mask, target_ids, target_mask)
    return row._replace(target_at=target_at) if (target_at >= 0).any() else row
