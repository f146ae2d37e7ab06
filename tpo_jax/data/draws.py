"""Seeded draws: which of several things a batch has."""

import math
from collections.abc import Sequence

import numpy as np

from tpo_jax.errors import InputError

# The last number of a generator's seed, so that no two kinds of draws share a seed. Orders of
# pairs have none.
FRAMES, DIRECTORY, TWO_VIDEOS = 2, 3, 4


def shares_of(
    name: str, weights: Sequence[float], things: Sequence[str], given: str
) -> tuple[float, ...]:
    """Return the shares of the batches that things have by their weights; they add up to 1.

    Args:
        name: Config field of the weights, for messages.
        weights: One for each thing; empty: all the same.
        things: As the flag spells them.
        given: Config field of the things, for messages.

    Raises:
        InputError: There is not one weight per thing, one is not a number >= 0, or none is above 0.
    """
    known = f"{name}={','.join(map(str, weights))}"
    if weights and len(weights) != len(things):
        raise InputError(f"{known}: not as many weights as in {given}={','.join(things)}")
    weights = weights or (1.0,) * len(things)
    numbers = all(isinstance(weight, (int, float)) for weight in weights)
    if not numbers or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise InputError(f"{known} must be numbers of at least 0, one of them above 0")
    return tuple(weight / sum(weights) for weight in weights)


def drawn(shares: tuple[float, ...], seed: int, k: int, kind: int) -> int:
    """Return which thing batch `k` has: a function of the seed and `k` alone.

    Args:
        shares: Of the things.
        kind: Kind of draw, one of the constants above.
    """
    if len(shares) == 1:
        return 0
    return int(np.random.default_rng([seed, k, kind]).choice(len(shares), p=shares))
