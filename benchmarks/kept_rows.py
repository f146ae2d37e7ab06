"""Pages whose rows take minutes each: a run computes some of them and keeps the others."""

import sys
from collections.abc import Callable, Collection
from pathlib import Path

from tpo_jax.planning.plan import Plan


def write_rows(
    path: Path,
    head: str,
    starts: dict[str, str],
    wanted: Collection[str],
    compute: Callable[[str], str],
) -> None:
    """Write a page of a head and one row per name, in this order, after every row computed.

    Args:
        path: of the page; it may exist.
        head: what stands before the rows.
        starts: by name, how the row begins; rows that are neither there nor wanted are left out.
        wanted: names of the rows to compute; empty: all.
        compute: returns the row of a name.
    """
    old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = {name: next((x for x in old if x.startswith(s)), "") for name, s in starts.items()}
    for name in wanted or starts:
        rows[name] = compute(name)
        print(rows[name], file=sys.stderr, flush=True)
        path.write_text(head + "\n".join(filter(None, rows.values())) + "\n", encoding="utf-8")


def times_minimum(plan: Plan) -> str:
    """Return the FLOPs of a step over the least, and of these what is computed twice."""
    found = plan.flops, plan.recomputed, plan.scores
    total, recomputed, scores = (flops / plan.minimum_flops for flops in found)
    return f"{total:.2f} ({recomputed:.2f} layers, {scores:.2f} scores)"
