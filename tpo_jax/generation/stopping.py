"""Stop strings: texts that end an answer and are not part of it, however tokens divide them."""

from collections.abc import Sequence


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the answer ends: before the stop string that is complete first.

    Which one that is does not depend on how much text follows, so a growing answer ends where the
    whole one does. Of several that are complete at the same character the longest counts.

    Args:
        text: The answer so far.
        stop: Texts that are not empty.

    Returns:
        The number of characters before that stop string; None: the text has none.
    """
    found = ((text.find(s) + len(s), text.find(s)) for s in stop if s in text)
    return min(found, default=(0, None))[1]


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    longest = min(len(text), max(map(len, stop), default=0))
    return next((n for n in range(longest, 0, -1) if _begins(text[-n:], stop)), 0)


def _begins(ending: str, stop: Sequence[str]) -> bool:
    return any(s.startswith(ending) for s in stop)
