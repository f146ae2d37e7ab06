"""The record of a run in its working directory: config, metrics, where its time went."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tpo_jax.errors import InputError
from tpo_jax.training.goodput import Account, read
from tpo_jax.training.metrics import read_records

ENOUGH = 10  # records that a rule about a trend needs


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its working directory records it.

    Args:
        steps: int `[n]`, one a record.
        series: Metric name to float `[n]`; NaN if a record lacks it.
    """

    config: dict[str, Any]
    steps: np.ndarray
    series: dict[str, np.ndarray]
    account: Account

    def field(self, name: str) -> Any:
        """Return a field of the config such as `train.batch_size`; '?' if it is absent."""
        section, _, field = name.partition(".")
        return self.config.get(section, {}).get(field, "?")

    def get(self, name: str) -> np.ndarray | None:
        """Return a metric; None if a record lacks it or there are fewer than `ENOUGH` records."""
        values = self.series.get(name)
        if values is None or len(values) < ENOUGH or not np.isfinite(values).all():
            return None
        return values


def load(workdir: Path) -> Run:
    """Load the run of a working directory; it may be in progress.

    Raises:
        InputError: The directory is not one of `train`, or has no record yet.
    """
    metrics, config = workdir / "metrics.jsonl", workdir / "config.json"
    for path in (metrics, config):
        if not path.is_file():
            raise InputError(f"{path}: no such file; --workdir must be one of `train`")
    if not (records := read_records(metrics)):
        raise InputError(
            f"{metrics}: no record yet; `train` writes one every train.log_every steps"
        )
    names = dict.fromkeys(name for record in records for name in record if name != "step")
    try:
        sections = json.loads(config.read_bytes())
        fields = {section: dict(fields) for section, fields in sections.items()}
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{config}: not what `train` writes: {error!r}") from error
    return Run(
        fields,
        np.array([record["step"] for record in records], int),
        {n: np.array([r.get(n, math.nan) for r in records], float) for n in names},
        Account(read(workdir)),
    )
