"""The data card in Markdown: what a curated list holds and how it was made."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpo_jax.curation.units import Unit

LENGTHS = (("under 1 min", 60), ("1 to 3 min", 180), ("3 to 10 min", 600), ("longer", float("inf")))


def statistics(videos: Sequence[Unit], pairs: Sequence[Unit]) -> dict[str, Any]:
    """Return counts of lengths, kinds, types and views, and mean answer lengths in characters.

    Args:
        videos: Units after the stage `videos`.
        pairs: The final units.
    """
    lengths = Counter(
        next(name for name, end in LENGTHS if video.duration < end) for video in videos
    )
    count = max(1, len(pairs))
    return {
        "videos": len({pair.video for pair in pairs}),
        "pairs": len(pairs),
        "video lengths": {name: lengths[name] for name, _ in LENGTHS},
        "kinds": _counts(pair.kind for pair in pairs),
        "question types": _counts(pair.type for pair in pairs),
        "manipulations": _counts(pair.manipulation for pair in pairs),
        "mean characters": {
            "chosen": round(sum(len(pair.chosen) for pair in pairs) / count, 1),
            "rejected": round(sum(len(pair.rejected) for pair in pairs) / count, 1),
        },
        "agreement": round(sum(map(agreement, pairs)) / count, 3),
        # Accuracy of telling the two apart by length alone; 0.5 is chance.
        "chosen is longer": round(sum(map(_longer, pairs)) / count, 3),
    }


def agreement(pair: Unit) -> float:
    """Return the words that both answers of a pair share, as a fraction of all their words."""
    one, other = (set(re.findall(r"\w+", text.lower())) for text in (pair.chosen, pair.rejected))
    return len(one & other) / max(1, len(one | other))


def _longer(pair: Unit) -> float:
    chosen, rejected = len(pair.chosen), len(pair.rejected)
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def card(
    numbers: Mapping[str, Any],
    yields: Mapping[str, Mapping[str, int]],
    models: Mapping[str, str],
    licence: str = "",
    pictures: Sequence[str] = (),
) -> str:
    """Return the text of the card.

    Args:
        numbers: From `statistics`.
        yields: Per stage, what became of its units.
        models: The model that filled each role.
        licence: Of the videos, as configured; may be empty.
        pictures: Names of `charts`, which lie beside the card.
    """
    lines = [
        "# Temporal preference pairs",
        "",
        f"{numbers['pairs']} pairs of {numbers['videos']} videos, made with tpo_jax. Each has a "
        "question about a video, a chosen answer given on well-chosen frames and a rejected answer "
        "given on worse ones (`provenance.manipulation`: chosen / rejected).",
        "",
        f"Licence of the videos, as given: {licence or 'not given'}. What the models below wrote "
        "is under the terms of their owners; nothing here changes either.",
        "",
        "| role | model |",
        "|---|---|",
        *(f"| {role} | {model} |" for role, model in models.items()),
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
        "| stage | units | items | dropped | failed |",
        "|---|---|---|---|---|",
    ]
    for stage, counts in yields.items():
        lines.append(f"| {stage} | " + " | ".join(str(n) for n in counts.values()) + " |")
    return "\n".join(lines) + "\n"
