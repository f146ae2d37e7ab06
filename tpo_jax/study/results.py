"""What the runs of a study left, as numbers per seed."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tpo_jax.io.files import read_json
from tpo_jax.study.miniature import LONG_FRAMES, LONG_SECONDS
from tpo_jax.study.scoring import bootstrap
from tpo_jax.study.settings import Run
from tpo_jax.study.statistics import Difference, Mean, paired, t_interval

Chosen = Callable[[dict], bool]


def asked(seconds: int, frames: int) -> Chosen:
    """The questions on videos of `seconds`, seen with `frames`; 0: with another video."""
    return lambda row: row["seconds"] == seconds and row["frames"] == frames


MAIN = asked(LONG_SECONDS, LONG_FRAMES)
COLUMNS: dict[str, Chosen] = {
    "96 s, 32 frames": MAIN,
    "96 s, 64 frames": asked(96, 64),
    "36 s, 12 frames": asked(36, 12),
    "sentences": lambda row: MAIN(row) and row["truth"].endswith("."),
    "bare words": lambda row: MAIN(row) and not row["truth"].endswith("."),
    "localized": lambda row: MAIN(row) and row["kind"] == "localized",
    "comprehensive": lambda row: MAIN(row) and row["kind"] == "comprehensive",
}


class Results:
    """The answers of one family.

    Args:
        workdir: of the study.
        family: of models.
        seeds: that count, of which some may not be there yet.
    """

    def __init__(self, workdir: Path, family: str, seeds: Sequence[int]):
        self.workdir, self.family, self.seeds = workdir, family, tuple(seeds)
        self.rows = functools.cache(self._rows)

    def _rows(self, variant: str, seed: int) -> list[dict]:
        return read_json(Run(self.family, seed, variant).answers(self.workdir))

    def there(self, *variants: str) -> list[int]:
        """Seeds of which all these variants have been carried out."""
        return [
            seed
            for seed in self.seeds
            if all(Run(self.family, seed, v).answers(self.workdir).exists() for v in variants)
        ]

    def accuracies(self, variant: str, seeds: Sequence[int], chosen: Chosen = MAIN) -> np.ndarray:
        """float64 `[seeds]`; NaN where nothing was asked."""
        found = [[row["right"] for row in self.rows(variant, s) if chosen(row)] for s in seeds]
        return np.array([np.mean(right) if right else np.nan for right in found])

    def mean(self, variant: str, chosen: Chosen = MAIN) -> Mean:
        """Over the seeds there are, with the t-interval."""
        return t_interval(self.accuracies(variant, self.there(variant), chosen))

    def difference(self, ours: str, theirs: str, chosen: Chosen = MAIN) -> Difference:
        """Paired over the seeds of which both are there."""
        seeds = self.there(ours, theirs)
        one, other = (self.accuracies(name, seeds, chosen) for name in (ours, theirs))
        return paired(one, other)

    def over_videos(self, ours: str, theirs: str, chosen: Chosen = MAIN) -> tuple[float, float]:
        """95 % interval of the difference over videos, for the base models that there are."""
        gains, videos = [], []
        for number, seed in enumerate(self.there(ours, theirs)):
            sides = ([r for r in self.rows(name, seed) if chosen(r)] for name in (ours, theirs))
            for one, other in zip(*sides, strict=True):
                gains.append(float(one["right"]) - other["right"])
                videos.append(number * 1_000_000 + one["video"])
        return bootstrap(np.array(gains), videos)[1:]
