"""From judged pairs to the final list: no duplicates, kinds and types in proportion."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tpo_jax.curation.config import Balance
from tpo_jax.curation.seeds import seed_of
from tpo_jax.curation.templates import TYPES
from tpo_jax.curation.units import Unit


def balance(
    units: Iterable[Unit], settings: Balance, shares: Sequence[float], seed: int
) -> tuple[list[Unit], dict[str, int]]:
    """Return the pairs that are kept, sorted by id, and how many each rule removed.

    Args:
        settings: Section `balance` of the config.
        shares: Of the question types, in the order of `templates.TYPES`.
        seed: Of the order in which pairs are taken if not all are.
    """
    order = sorted(units, key=lambda unit: (seed_of(seed, "balance", unit.id), unit.id))
    removed: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    per_video: Counter[str] = Counter()
    kept = []
    for unit in order:
        key = unit.video, " ".join(re.findall(r"\w+", unit.question.lower()))
        shorter, longer = sorted((len(unit.chosen), len(unit.rejected)))
        limit = settings.max_length_ratio
        if key in seen:
            removed["the same question"] += 1
        elif limit and longer > limit * shorter:
            removed["one answer much longer"] += 1
        elif settings.per_video and per_video[unit.video] == settings.per_video:
            removed["enough of this video"] += 1
        else:
            seen.add(key)
            per_video[unit.video] += 1
            kept.append(unit)
    supply = Counter(unit.kind for unit in kept)
    wanted = {"localized": settings.localized, "comprehensive": 1 - settings.localized}
    total = min(
        [settings.pairs or len(kept), *(supply[kind] / w for kind, w in wanted.items() if w)]
    )
    chosen: list[Unit] = []
    weights = dict(zip(TYPES, shares, strict=True)) if settings.types else {}
    for kind, share in wanted.items():
        candidates = [unit for unit in kept if unit.kind == kind]
        # Without the small term, rounding could turn a share such as 0.3 of 10 into 2.
        chosen += _take(candidates, int(total * share + 1e-6), weights)
    removed["beyond the proportions"] = len(kept) - len(chosen)
    return sorted(chosen, key=lambda unit: unit.id), {k: n for k, n in removed.items() if n}


def _take(units: Sequence[Unit], count: int, weights: dict[str, float]) -> list[Unit]:
    """Return the first `count`; with weights, each of the type furthest behind its share."""
    if not weights:
        return list(units[:count])
    queues: dict[str, list[Unit]] = defaultdict(list)
    for unit in reversed(units):
        queues[unit.type].append(unit)
    taken: Counter[str] = Counter()
    result: list[Unit] = []
    while len(result) < count:
        left = [name for name, queue in queues.items() if queue and weights[name]]
        if not left:
            break
        name = min(left, key=lambda n: ((taken[n] + 1) / weights[n], n))
        taken[name] += 1
        result.append(queues[name].pop())
    return result


def pair(unit: Unit, model: str) -> dict[str, Any]:
    """Return a line of the list for `prepare`.

    Args:
        unit: A judged pair.
        model: Identity of the answerer.
    """
    return {
        "id": unit.id,
        "video": unit.video,
        "prompt": unit.question,
        "chosen": unit.chosen,
        "rejected": unit.rejected,
        "kind": unit.kind,
        "segment": unit.segment,
        "provenance": {
            "model": model,
            "manipulation": unit.manipulation,
            "verdict": unit.verdict,
        },
    }
