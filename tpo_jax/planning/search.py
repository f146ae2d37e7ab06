"""Find the longest videos or the largest batch that fits a slice, and the smallest slice that an
experiment fits.
"""

import bisect
import math
from collections.abc import Callable

from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.parallel.splash import LANES
from tpo_jax.planning.chips import SLICES
from tpo_jax.planning.plan import Plan, prefix_tokens


def frames_of(model: ModelConfig, prefix: int) -> int:
    """Return the most frames whose prefix has at most `prefix` tokens."""
    counts = range(1, 2 * prefix + 1)  # a token covers two frames at most
    return bisect.bisect_right(counts, prefix, key=lambda n: prefix_tokens(model, n))


def most_frames(
    compile_at: Callable[[int], Plan],
    model: ModelConfig,
    multiple: int,
    context: int,
    start: int,
    response: int,
) -> tuple[Plan | None, Plan | None]:
    """Find the longest videos that fit.

    Memory grows nearly linearly with the prefix, so the next guess is where the line through two
    plans meets the limit. A guess that does not halve the interval is followed by its middle.

    Args:
        compile_at: returns the plan of a number of frames; called about six times.
        model: gives the tokens of a frame and the longest context.
        multiple: prefix lengths are multiples of it (`data.prefix_multiple`) and of what attention
            over `context` chips needs.
        context: chips that share a prefix.
        start: frames of the first plan.
        response: tokens of an answer.

    Returns:
        The plan of the most frames that fit, None where none do, and the plan of the next larger
        number, None where the model's context ends first.
    """
    unit = math.lcm(multiple, LANES * (2 * context if context > 1 else 1))
    # Only the largest number of frames for each prefix length needs a compilation.
    full = {frames_of(model, n) for n in range(unit, model.max_length - response + 1, unit)}
    sizes = sorted(full - {0})
    plans: dict[int, Plan] = {}
    low, high = -1, len(sizes)  # the largest that fits, the smallest that does not
    guess = bisect.bisect_left(sizes, start)
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        plans[guess] = plan = compile_at(sizes[guess])
        before = high - low
        low, high = (guess, high) if plan.fits else (low, guess)
        known = sorted(plans)
        if len(known) == 1:
            guess = 2 * guess + 1 if plan.fits else guess // 2
        elif len(known) > 3 and high - low > before / 2:
            guess = (low + high) // 2
        else:
            a, b = (low, high) if low in plans and high in plans else known[-2:]
            slope = max(1.0, (plans[b].peak - plans[a].peak) / (b - a))
            guess = a + int((plans[a].limit - plans[a].peak) / slope)
    return plans.get(low), plans.get(high)


def most_rows(compile_at: Callable[[int], Plan], start: int) -> Plan:
    """Double the videos at a time while they fit; return the plan of the most that do, or of the
    fewest if those do not.

    Args:
        compile_at: returns the plan of a number of videos, or of more if the mesh needs more.
        start: the fewest.
    """
    best = compile_at(start)
    while best.fits and (more := compile_at(2 * best.rows)).fits:
        best = more
    return best


def smallest_slice(
    compile_on: Callable[[str], Plan], kind: str, tell: Callable[[str], None]
) -> Plan:
    """Find the smallest slice of a kind that an experiment fits.

    Args:
        compile_on: returns the plan on a topology such as `v5e:4x4`.
        kind: a key of `SLICES`.
        tell: called with one line for each slice that is too small or cannot run the experiment.

    Returns:
        The plan on that slice; on the largest slice where the experiment fits none.

    Raises:
        InputError: an unknown kind of chip, or no slice can run the experiment whatever its memory.
    """
    if kind not in SLICES:
        raise InputError(
            f"--topology={kind}: a search over slices takes one of {', '.join(SLICES)}"
        )
    plan = refused = None
    for shape in SLICES[kind].split():
        topology = f"{kind}:{shape}"
        try:
            plan = compile_on(topology)
        except InputError as error:
            refused = error
            tell(f"{topology}: {error}")
            continue
        if plan.fits:
            return plan
        tell(f"{topology}: does not fit")
    if plan is None:
        raise InputError(f"--topology={kind}: no slice can run this experiment; {refused}")
    return plan
