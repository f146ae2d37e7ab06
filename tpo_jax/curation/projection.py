"""What the rest of a run will take, estimated from a pilot of its first videos."""

from collections.abc import Mapping

from tpo_jax.curation.ledger import Spent

VIDEOS = 32  # in a pilot; runs of fewer than four times this number have no pilot


def projection(done: int, rest: int, seconds: Mapping[str, float], spent: Spent) -> str:
    """Return one line: time, tokens and costs that the rest will take.

    Args:
        done: Videos of the pilot.
        rest: Videos that are left.
        seconds: Per stage, what the pilot took. Includes compiling and loading once, so the rest
            takes less.
        spent: By the pilot.
    """
    stages = ", ".join(f"{name} {_time(s)}" for name, s in seconds.items() if s >= 0.5)
    total = sum(seconds.values())
    line = f"pilot: {done} videos in {_time(total)}" + (f" ({stages})" if stages else "")
    share = rest / done
    line += f"; the other {rest} will take about {_time(total * share)}"
    if spent.tokens_in or spent.tokens_out:
        ahead = [f"{share * n:,.0f}" for n in (spent.tokens_in, spent.tokens_out)]
        line += f", {ahead[0]} tokens in, {ahead[1]} out"
    if spent.cost:
        line += f" and cost about {share * spent.cost:.2f} (so far {spent.cost:.2f})"
    return line


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
