"""What a base model must show before pairs of its own answers can teach it anything.

A localized pair teaches what the model answers right in the window around a moment and loses among
all frames. So short videos must be answered, and the window must be answered better than the whole
video.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tpo_jax.study.cells import Table
from tpo_jax.study.records import Answer, Candidate
from tpo_jax.study.rows import ROBUST

VERDICTS = ("holds", "little to gain", "not mastered")
MASTERED = 0.95  # least accuracy on short videos
LOST = 0.15  # least accuracy by which the window is above all frames
FRAMES: tuple[int, ...] = ROBUST["data.num_frames"]
_WHOLE = tuple(f"{frames} frames" for frames in FRAMES)


@dataclasses.dataclass(frozen=True)
class Gate:
    """Accuracies of a base model on one type and kind of question; NaN where none was asked."""

    type: str
    kind: str
    short: float  # short videos, of this type
    window: float  # chosen answers of the pairs, unfiltered
    all_frames: tuple[float, ...]  # long videos that no pair is about, seen with each of `FRAMES`

    @property
    def verdict(self) -> str:
        """Return whether pairs of this kind can teach the model anything."""
        holds, little, not_mastered = VERDICTS
        if not self.short >= MASTERED:
            return not_mastered
        lost = any(self.window - share >= LOST for share in self.all_frames)
        return holds if lost or self.kind != "localized" else little


def gates(base: Sequence[Answer], made: Sequence[Candidate]) -> list[Gate]:
    """Return the gates of every type and kind of question.

    Args:
        base: the model's answers about held-out videos of several lengths.
        made: its answers of which pairs are made.
    """
    longest = max(answer.seconds for answer in base)
    short = [a for a in base if a.seconds < longest and a.frames]
    whole = [a for a in base if a.seconds == longest]
    return [
        Gate(
            *name,
            short=_share([a.right for a in short if a.type == name[0]]),
            window=_share([c.chosen_right for c in made if (c.type, c.kind) == name]),
            all_frames=tuple(
                _share([a.right for a in whole if (a.type, a.kind, a.frames) == (*name, frames)])
                for frames in FRAMES
            ),
        )
        for name in sorted({(c.type, c.kind) for c in made})
    ]


def _share(right: Sequence[float]) -> float:
    return float(np.mean(right)) if right else float("nan")


def gates_of_seeds(found: Sequence[Sequence[Gate]]) -> Table:
    """Return a line per type and kind: means over seeds, least accuracy on short videos, verdicts.

    A mean is over the seeds that were asked.

    Args:
        found: the gates of each seed's base.
    """
    lines = [["type", "kind", "short videos", "least", "chosen right", *_WHOLE, *VERDICTS]]
    groups = defaultdict(list)
    for gate in itertools.chain(*found):
        groups[gate.type, gate.kind].append(gate)
    for name, of in sorted(groups.items()):
        columns = np.array([(g.short, g.window, *g.all_frames) for g in of]).T
        short, *others = (column[~np.isnan(column)].tolist() for column in columns)
        shares = (_share(short), min(short, default=np.nan), *map(_share, others))
        given = [gate.verdict for gate in of]
        counts = (str(given.count(verdict)) for verdict in VERDICTS)
        lines.append([*name, *map(_cell, shares), *counts])
    return lines


def gate_table(found: Sequence[Gate]) -> Table:
    """Return a line per gate; accuracies with two decimals."""
    lines = [["type", "kind", "short videos", "chosen right", *_WHOLE, "gate"]]
    for gate in found:
        shares = (gate.short, gate.window, *gate.all_frames)
        lines.append([gate.type, gate.kind, *map(_cell, shares), gate.verdict])
    return lines


def _cell(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.2f}"
