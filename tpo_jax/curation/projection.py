"""What the rest of a run will take, going by a pilot of its first videos."""

from collections.abc import Mapping

from tpo_jax.curation.ledger import Spent

VIDEOS = 32  # of a pilot; runs of less than four times as many have none


def projection(done: int, rest: int, seconds: Mapping[str, float], spent: Spent) -> str:
    """One line.

    Args:
        done: videos of the pilot.
        rest: videos that are left.
        seconds: per stage, what the pilot took; what is compiled and loaded once is in it, so the
            rest takes rather less.
        spent: by the pilot.
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
