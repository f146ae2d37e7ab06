"""The data card: what a curated list holds and how it came about, in Markdown."""

import re
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
        # Words that the two answers share, as a part of all their words.
        "agreement": round(sum(map(agreement, pairs)) / count, 3),
        # What telling the two apart by length alone would score; 0.5 is chance.
        "chosen is longer": round(sum(map(_longer, pairs)) / count, 3),
    }


def agreement(pair: Mapping[str, Any]) -> float:
    """Words that the two answers of a pair share, as a part of all their words."""
    one, other = (set(re.findall(r"\w+", pair[side].lower())) for side in ("chosen", "rejected"))
    return len(one & other) / max(1, len(one | other))


def _longer(pair: dict) -> float:
    chosen, rejected = len(pair["chosen"]), len(pair["rejected"])
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _counts(pairs: Sequence[dict], name: str) -> dict[str, int]:
    return dict(sorted(Counter(pair[name] for pair in pairs).items()))


def card(
    numbers: Mapping[str, Any],
    yields: Mapping[str, Mapping[str, int]],
    makers: Mapping[str, str],
    licence: str = "",
    pictures: Sequence[str] = (),
) -> str:
    """The text.

    Args:
        numbers: of `statistics`.
        yields: per stage, what became of its units.
        makers: who played which role.
        licence: of the videos, as it was given; may be empty.
        pictures: names of `charts`, which lie beside the card.
    """
    lines = [
        "# Temporal preference pairs",
        "",
        f"{numbers['pairs']} pairs of {numbers['videos']} videos, made with tpo_jax. Each has a "
        "question about a video, a chosen answer given on well chosen frames and a rejected answer "
        "given on worse ones (`provenance.manipulation`: chosen / rejected).",
        "",
        f"Licence of the videos, as given: {licence or 'not given'}. What the models below wrote "
        "is under the terms of their owners; nothing here changes either.",
        "",
        "| role | model |",
        "|---|---|",
        *(f"| {role} | {maker} |" for role, maker in makers.items()),
    ]
    for name in ("kinds", "question types", "manipulations", "video lengths"):
        total = max(1, sum(numbers[name].values()))
        lines += ["", f"| {name} | | |", "|---|---|---|"]
        lines += [f"| {k} | {n} | {100 * n / total:.1f} % |" for k, n in numbers[name].items()]
    lines += [text for name in pictures for text in ("", f"![{name}]({name}.svg)")]
    mean = numbers["mean characters"]
    lines += [
        "",
        f"Mean length: {mean['chosen']} characters chosen, {mean['rejected']} rejected; the chosen "
        f"answer is the longer one in {100 * numbers['chosen is longer']:.1f} % (ties count half). "
        f"The two answers of a pair share {100 * numbers['agreement']:.1f} % of their words.",
        "",
        "| stage | units | items | dropped | set aside |",
        "|---|---|---|---|---|",
    ]
    for stage, counts in yields.items():
        lines.append(f"| {stage} | " + " | ".join(str(n) for n in counts.values()) + " |")
    return "\n".join(lines) + "\n"
