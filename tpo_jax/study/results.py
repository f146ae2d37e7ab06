"""The outcomes of a study's runs, as numbers per seed."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tpo_jax.io.files import read_json
from tpo_jax.study.records import Answer, Candidate, NeedlesFound, StudyRun, read_rows
from tpo_jax.study.stages import LONG_FRAMES, LONG_SECONDS
from tpo_jax.study.statistics import Difference, Mean, bootstrap, paired, t_interval

Chosen = Callable[[Answer], bool]


def asked(seconds: int, frames: int) -> Chosen:
    """Select the questions on videos of `seconds`, seen with `frames`; 0: with another video."""
    return lambda row: row.seconds == seconds and row.frames == frames


MAIN = asked(LONG_SECONDS, LONG_FRAMES)
# Videos such as the base was trained on, as many seconds a frame as in `MAIN`.
SHORT: Chosen = lambda row: row.seconds < LONG_SECONDS and row.frames > 0  # noqa: E731
COLUMNS: dict[str, Chosen] = {
    "96 s, 32 frames": MAIN,
    "96 s, 64 frames": asked(96, 64),
    "short videos": SHORT,
    "sentences": lambda row: MAIN(row) and row.truth.endswith("."),
    "bare words": lambda row: MAIN(row) and not row.truth.endswith("."),
    "localized": lambda row: MAIN(row) and row.kind == "localized",
    "comprehensive": lambda row: MAIN(row) and row.kind == "comprehensive",
}


class Results:
    """The outcomes of one family.

    Args:
        family: preset of the models.
        seeds: that count; some may not have been run yet.
    """

    def __init__(self, workdir: Path, family: str, seeds: Sequence[int]):
        self.workdir, self.family, self.seeds = workdir, family, tuple(seeds)
        self.answers = functools.cache(self._answers)
        self._accuracy = functools.cache(self._accuracy_of)

    def run(self, row: str, seed: int) -> StudyRun:
        """Return the run of a row and a seed."""
        return StudyRun(self.family, seed, row)

    def _answers(self, row: str, seed: int) -> list[Answer]:
        return read_rows(self.run(row, seed).answers(self.workdir), Answer)

    def candidates(self, seed: int) -> list[Candidate]:
        """Return what the pairs of a seed were made from; none if nothing was asked yet."""
        path = self.run("base", seed).directory(self.workdir) / "answers.json"
        return read_rows(path, Candidate) if path.exists() else []

    def needles(self, row: str, seed: int) -> NeedlesFound:
        """Return which needles the model of a row and a seed finds."""
        return NeedlesFound(**read_json(self.run(row, seed).needles(self.workdir)))

    def needles_found(self, row: str) -> list[float]:
        """Return the share of needles found over the grid, of the seeds that looked for them."""
        seeds = [s for s in self.there(row) if self.run(row, s).needles(self.workdir).exists()]
        return [float(np.mean(self.needles(row, seed).found)) for seed in seeds]

    def there(self, *rows: str) -> list[int]:
        """Return the seeds for which all these rows have been run."""
        return [
            seed
            for seed in self.seeds
            if all(self.run(row, seed).answers(self.workdir).exists() for row in rows)
        ]

    def accuracies(self, row: str, seeds: Sequence[int], chosen: Chosen = MAIN) -> np.ndarray:
        """Return float64 `[seeds]`; NaN where nothing was asked."""
        return np.array([self._accuracy(row, seed, chosen) for seed in seeds])

    def _accuracy_of(self, row: str, seed: int, chosen: Chosen) -> float:
        right = [answer.right for answer in self.answers(row, seed) if chosen(answer)]
        return float(np.mean(right)) if right else np.nan

    def mean(self, row: str, chosen: Chosen = MAIN) -> Mean:
        """Return the mean over the seeds there are, with its t-interval."""
        return t_interval(self.accuracies(row, self.there(row), chosen))

    def difference(self, ours: str, theirs: str, chosen: Chosen = MAIN) -> Difference:
        """Compare two rows over the seeds for which both have been run."""
        seeds = self.there(ours, theirs)
        one, other = (self.accuracies(name, seeds, chosen) for name in (ours, theirs))
        return paired(one, other)

    def over_videos(self, ours: str, theirs: str, chosen: Chosen = MAIN) -> tuple[float, float]:
        """Return the 95 % interval of the difference over videos, base models as they are."""
        differences, videos = [], []
        for number, seed in enumerate(self.there(ours, theirs)):
            sides = ([a for a in self.answers(name, seed) if chosen(a)] for name in (ours, theirs))
            for one, other in zip(*sides, strict=True):
                differences.append(float(one.right) - other.right)
                videos.append(number * 1_000_000 + one.video)
        return bootstrap(np.array(differences), videos)[1:]
