"""The data card: what a curated list holds and how it came about, in Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LENGTHS = (("under 1 min", 60), ("1 to 3 min", 180), ("3 to 10 min", 600), ("longer", float("inf")))


def statistics(videos: Sequence[dict], pairs: Sequence[dict]) -> dict[str, Any]:
    """Counts of lengths, kinds, types and manipulations, and mean answer lengths in characters.

    Args:
        videos: units of the stage `videos`, with `duration` in seconds.
        pairs: balanced units.
    """
    lengths = Counter(
        next(name for name, end in LENGTHS if video["duration"] < end) for video in videos
    )
    count = max(1, len(pairs))
    return {
        "videos": len({pair["video"] for pair in pairs}),
        "pairs": len(pairs),
        "video lengths": {name: lengths[name] for name, _ in LENGTHS},
        "kinds": _counts(pairs, "kind"),
        "question types": _counts(pairs, "type"),
        "manipulations": _counts(pairs, "manipulation"),
        "mean characters": {
            side: round(sum(len(pair[side]) for pair in pairs) / count, 1)
            for side in ("chosen", "rejected")
        },
        # What telling the two apart by length alone would score; 0.5 is chance.
        "chosen is longer": round(sum(map(_longer, pairs)) / count, 3),
    }


def _longer(pair: dict) -> float:
    chosen, rejected = len(pair["chosen"]), len(pair["rejected"])
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _counts(pairs: Sequence[dict], name: str) -> dict[str, int]:
    return dict(sorted(Counter(pair[name] for pair in pairs).items()))


def card(
    numbers: Mapping[str, Any], yields: Mapping[str, Mapping[str, int]], makers: Mapping[str, str]
) -> str:
    """The text.

    Args:
        numbers: of `statistics`.
        yields: per stage, what became of its units.
        makers: who played which role.
    """
    lines = [
        "# Temporal preference pairs",
        "",
        f"{numbers['pairs']} pairs of {numbers['videos']} videos, made with tpo_jax. Each has a "
        "question about a video, a chosen answer given on well chosen frames and a rejected answer "
        "given on worse ones (`provenance.manipulation`: chosen / rejected).",
        "",
        "The licences of the videos, and of what the models below wrote, are those their owners "
        "give; nothing here changes them.",
        "",
        "| role | model |",
        "|---|---|",
        *(f"| {role} | {maker} |" for role, maker in makers.items()),
    ]
    for name in ("kinds", "question types", "manipulations", "video lengths"):
        total = max(1, sum(numbers[name].values()))
        lines += ["", f"| {name} | | |", "|---|---|---|"]
        lines += [f"| {k} | {n} | {100 * n / total:.1f} % |" for k, n in numbers[name].items()]
    mean = numbers["mean characters"]
    lines += [
        "",
        f"Mean length: {mean['chosen']} characters chosen, {mean['rejected']} rejected; the chosen "
        f"answer is the longer one in {100 * numbers['chosen is longer']:.1f} % (ties count half).",
        "",
        "| stage | units | items | dropped | set aside |",
        "|---|---|---|---|---|",
    ]
    for stage, counts in yields.items():
        lines.append(f"| {stage} | " + " | ".join(str(n) for n in counts.values()) + " |")
    return "\n".join(lines) + "\n"
